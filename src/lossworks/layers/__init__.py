"""Parts of the model that an objective needs."""

from lossworks.layers.multi_sample_dropout import MultiSampleDropout, multi_sample_dropout_loss

__all__ = ["MultiSampleDropout", "multi_sample_dropout_loss"]
