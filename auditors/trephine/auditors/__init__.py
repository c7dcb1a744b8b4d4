"""Auditors: plugins that ask a question of a model and back the answer with causal tests."""
