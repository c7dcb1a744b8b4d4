"""Fitting replacement layers, in a process of its own: the one place that uses autograd and SAELens.

The engine imports `command` alone; everything that trains is imported by `__main__`, in the child.
"""
