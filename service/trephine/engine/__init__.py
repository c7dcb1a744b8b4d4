"""Everything that touches a loaded model."""
