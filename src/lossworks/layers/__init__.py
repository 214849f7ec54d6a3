"""Parts of the model that an objective needs."""

__all__: list[str] = []
