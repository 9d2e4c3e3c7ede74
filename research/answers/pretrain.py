"""Fills each [MASK], as masked_lm does."""

from research.answers.masked_lm import make as make
