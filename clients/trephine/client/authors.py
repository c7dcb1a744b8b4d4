from __future__ import annotations

import getpass


def current_user() -> str:
    """Who runs this, for the record of an edit."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container without a passwd entry
