"""What edits are proposed and measured by: effects of interventions, controls beside them, directions."""
