"""Features: indexes, their pages, searches and labels."""
