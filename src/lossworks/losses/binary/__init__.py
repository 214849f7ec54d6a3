"""Losses on one score, whose sign is the answer."""
