"""Exports and classifiers: published, signed, verified; and edits deleted, where none rests on them."""
