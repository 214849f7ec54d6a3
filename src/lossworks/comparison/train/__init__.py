"""Training of many models at once, each with its own objective, rows and seed."""
