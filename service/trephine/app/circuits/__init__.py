"""Circuits: stored, looked at, pruned, labelled, compared, verified; and those of datasets."""
