"""decode(model, variables, inputs, key, **config) -> predictions."""
