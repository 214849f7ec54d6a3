"""What no change of the input can do: bounds that hold, and training for them."""

__all__: list[str] = []
