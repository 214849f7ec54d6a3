"""min over θ: steps that look further than the gradient at hand."""

__all__: list[str] = []
