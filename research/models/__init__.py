"""make(**config, precision) -> Model(init, axes, apply); flax appears in this folder only."""
