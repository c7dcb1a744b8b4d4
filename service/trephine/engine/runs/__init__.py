"""Runs of the model under interventions: forward passes, generation, scores, activations, the retain text."""
