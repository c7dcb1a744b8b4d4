"""One card for a model and its set: fidelity and utility, with baselines, controls and intervals."""
