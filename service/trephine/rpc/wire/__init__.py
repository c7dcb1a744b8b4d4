"""Mapping between `trephine.v1` messages and domain values, one module per topic.

`*_from_wire` validates and raises typed errors that name the field; `*_to_wire` never fails.
"""
