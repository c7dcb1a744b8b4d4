"""The hosted model: how it is loaded, what it is made of, its files, and the session that holds it."""
