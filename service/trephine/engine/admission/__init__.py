"""Sets are measured on the model before they are admitted, and again whenever that is asked for."""
