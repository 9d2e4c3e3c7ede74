"""make(**config, precision) -> Model(init, axes, apply); flax appears in this folder only.

Models that generate have empty_cache, decode_step and logits, and encoder-decoders encode. Every
leaf of a cache has the batch on its second axis, so that hypotheses can change places.
"""
