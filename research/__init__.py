"""Anneal trains, tunes, compresses and audits large models in JAX."""
