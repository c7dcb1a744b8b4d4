"""The retain text of a model, as token ids."""

from __future__ import annotations

from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.retain import retain_text


def retain_ids(hosted: HostedModel) -> list[list[int]]:
    """Return the windows of the built-in text."""
    return [list(window) for window in retain_text(hosted).windows]
