"""Losses on real values."""
