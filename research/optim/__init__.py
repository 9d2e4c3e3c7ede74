"""make(**config) -> optax.GradientTransformation; names not found here are optax's own."""
