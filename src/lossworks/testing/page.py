"""The page of the site on exactness, of all that the catalog has."""

from collections.abc import Sequence

from lossworks.testing.exactness import catalog_parts, exactness_matrix, exactness_page
from lossworks.testing.optimizers import catalog_optimizers, optimizer_matrix
from lossworks.testing.ranks import Ranks

__all__ = ["catalog_page"]


def catalog_page(ranks: Sequence[Ranks]) -> str:
    """Measure every part and every optimizer, and draw the page.

    Raises:
        AssertionError: all that is not exact although it must be.
    """
    parts, optimizers = catalog_parts(), catalog_optimizers()
    matrix = exactness_matrix(parts, ranks) | optimizer_matrix(optimizers, ranks)
    return exactness_page(matrix, {**parts, **optimizers})
