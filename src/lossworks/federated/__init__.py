"""Objectives whose rows stay with their clients."""

__all__: list[str] = []
