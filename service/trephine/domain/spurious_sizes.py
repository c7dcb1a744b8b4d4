"""How many texts the parts of a removal are measured on: drawn by the engine, counted by its price."""

from __future__ import annotations

ONE_HELD_OUT_OF = 5
"""One of so many ambiguous texts is held out where no validation split is given."""
FOLDS = 5
"""Parts that are left out in turn, so that texts are decided on by heads that have not seen them.

More, where a fifth less would leave too few twins to train a head without the attribute.
"""
SHRINKAGES = (1.0, 0.5, 0.25, 0.125)
"""Of the share that a covariance's noise asks for; twins tell which of them a head is trained with."""
CONTROL_TEXTS = 512
"""Test texts that random features and TPP are measured on, at most."""
EXACT_TEXTS = 16
"""Texts on which a single feature is ablated, at most."""
ORIENTING_TEXTS = 64
"""Texts of known attribute on which the head is asked which value goes with which label, at most."""
MATRIX_BYTES = 1 << 29
"""A matrix of texts by features is kept up to this size, by fewer texts."""
FEWEST_EFFECT_TEXTS = 8
"""That effects are measured on, however many features there are."""
