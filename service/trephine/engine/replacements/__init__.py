"""Replacement layers: reading them, admitting them, keeping them in memory, splicing and measuring them."""
