"""Bootstrap, settings, start and stop of the service."""
