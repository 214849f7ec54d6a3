"""Small images to segment, for the claims about segmentation: discs of some classes in noise."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Segmenter", "blobs", "overlap"]


def blobs(
    number: int, *, size: int, classes: int, empty: float, noise: float, generator: torch.Generator
) -> tuple[Float[Tensor, "n 1 size size"], Int[Tensor, "n size size"]]:
    """Images with one disc of a class from 1 on, as bright as its class, and none in a share ``empty`` of them.

    >>> x, y = blobs(3, size=8, classes=2, empty=1.0, noise=0.1, generator=torch.Generator().manual_seed(0))
    >>> x.shape, int(y.max())
    (torch.Size([3, 1, 8, 8]), 0)
    """
    place = torch.arange(size) + 0.0
    middle = 2 + (size - 5) * torch.rand(number, 2, generator=generator)
    radius = size * (0.2 + 0.15 * torch.rand(number, generator=generator))
    away = (place - middle[:, :1]).square()[:, :, None] + (place - middle[:, 1:]).square()[:, None, :]
    label = torch.randint(1, classes, (number,), generator=generator)
    label = torch.where(torch.rand(number, generator=generator) < empty, 0, label)
    y = torch.where(away <= radius[:, None, None].square(), label[:, None, None], 0)
    bright = y / (classes - 1)
    return (bright + noise * torch.randn(y.shape, generator=generator))[:, None], y


class Segmenter(nn.Module):
    """Two convolutions, whose maps are the features, and a class for each pixel of them: ``(output, features)``."""

    def __init__(self, classes: int, *, width: int = 8, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
            )
            self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(n, classes, h, w)`` and features ``(n, width, h, w)``."""
        features = self.body(x)
        return self.head(features), features


@torch.no_grad()
def overlap(model: nn.Module, x: Tensor, y: Int[Tensor, "n h w"], classes: int) -> float:
    """The mean over classes of the intersection over union, of all pixels together."""
    answer = model(x)[0].argmax(dim=1)
    pairs = torch.bincount((classes * y + answer).flatten(), minlength=classes**2).reshape(classes, classes).double()
    union = pairs.sum(dim=0) + pairs.sum(dim=1) - pairs.diagonal()
    return float((pairs.diagonal() / union.clamp(min=1)).mean())
