"""Attacks on exported folders: what perturbations and short training bring back of an ablated behaviour.

They need gradients, which the serving engine never takes: they run in a process of their own, on folders that
stock transformers loads.
"""
