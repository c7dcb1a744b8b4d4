"""Frames between our own processes, and the torch-free proxies that implement ports."""
