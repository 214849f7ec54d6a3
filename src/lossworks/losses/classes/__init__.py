"""Losses on logits, one logit a class."""
