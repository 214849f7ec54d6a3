"""The models: networks, the scaling of their inputs, their heads, and the boosted trees of the outside line."""
