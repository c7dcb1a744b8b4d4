"""EvaluateEdit: effect on targets, damage elsewhere, and what matched features and prompts do instead."""
