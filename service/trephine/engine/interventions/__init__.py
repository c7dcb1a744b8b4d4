"""What interventions do to values: where they apply, in which order, and what they are counted by."""
