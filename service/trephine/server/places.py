"""Default folders of the user."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_state_path


def default_state() -> Path:
    """`$TREPHINE_STATE`, or the user's own state folder."""
    given = os.environ.get("TREPHINE_STATE")
    return Path(given) if given else user_state_path("trephine")


def default_cache() -> Path:
    """`$TREPHINE_CACHE`, or the user's own cache folder; models lie in `models/NAME`."""
    given = os.environ.get("TREPHINE_CACHE")
    return Path(given) if given else user_cache_path("trephine")
