"""Losses on pairs of scores."""
