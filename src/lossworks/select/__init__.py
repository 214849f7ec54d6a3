"""Which rows: subsets of the data, and how sure one is of them."""

__all__: list[str] = []
