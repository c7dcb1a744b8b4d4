"""Use cases: jobs, stores, admission."""
