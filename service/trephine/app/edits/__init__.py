"""Edits: made, composed, proposed, stacked, served, evaluated, and what they rest on."""
