"""Looking inside: what a model, its data and its objective do to each other."""

__all__: list[str] = []
