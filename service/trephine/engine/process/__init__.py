"""The engine process: its loop, its schedule, what it sends and what it logs."""
