"""Commands about features, merged from the modules that carry them out."""

from __future__ import annotations

from trephine.engine.features import contrast, index, ranking, view
from trephine.engine.models.session import Handler

HANDLERS: dict[type, Handler] = {
    **index.HANDLERS,
    **view.HANDLERS,
    **ranking.HANDLERS,
    **contrast.HANDLERS,
}
"""Commands of this package."""
