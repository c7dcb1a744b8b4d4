"""How many texts the parts of a removal are measured on: drawn by the engine, counted by its price."""

from __future__ import annotations

ONE_HELD_OUT_OF = 5
"""One of so many ambiguous texts is held out where no validation split is given."""
CONTROL_TEXTS = 512
"""Test texts that random features and TPP are measured on, at most."""
EXACT_TEXTS = 16
"""Texts on which a single feature is ablated, at most."""
ORIENTING_TEXTS = 64
"""Texts of known attribute on which the head is asked which value goes with which label, at most."""
