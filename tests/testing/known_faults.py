"""What the contract has found and is not mended yet: strict expected failures, so that mending one says so."""

ANY_SHAPE = "the signature says (n,), and any shape is taken"

KNOWN_FAULTS = {
    ("clopper_pearson_lower", "names_a_bad_shape"): ANY_SHAPE,
    ("mixed_smoothing_radius", "names_a_bad_shape"): ANY_SHAPE,
    ("conv_orthogonality_bounds", "finite_gradient"): "the gradient at an orthogonal kernel is not finite",
}
"""For each part and check, what is wrong; it holds in all settings of the part."""
