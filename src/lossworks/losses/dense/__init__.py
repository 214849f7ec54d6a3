"""Losses on dense predictions such as segmentation maps, where each pixel is a row."""
