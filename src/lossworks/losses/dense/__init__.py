"""Losses on maps, one row a pixel."""
