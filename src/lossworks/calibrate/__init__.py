"""After training: maps from a trained model's outputs to honest probabilities."""

from lossworks.calibrate.temperature import TemperatureScaling

__all__ = ["TemperatureScaling"]
