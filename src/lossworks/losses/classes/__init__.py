"""Losses on logits, one a class."""
