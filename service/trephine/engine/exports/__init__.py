"""Exports: planned, compiled into a folder, certified, signed; and classifiers beside them."""
