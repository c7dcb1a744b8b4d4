"""The process that people start: settings, construction, sockets, leases, and commands that need torch."""
