"""Models that are loaded, and how they are hosted."""
