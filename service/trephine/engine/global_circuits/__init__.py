"""Circuits that no single prompt decides: virtual weights, weighted by many texts, checked on others."""
