"""Handing over: a comparison's result, report, trained model and recipe."""
