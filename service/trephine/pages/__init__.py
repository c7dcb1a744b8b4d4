"""Self-contained HTML pages and the JSON of other viewers."""
