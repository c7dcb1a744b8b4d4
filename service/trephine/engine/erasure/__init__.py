"""Erasing a concept from activations: what feature removal is measured against.

Every function takes activations and labels and returns a value; none touches a model.
"""
