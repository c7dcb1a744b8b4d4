from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trephine.client.wire import Wire


def pages(wire: Wire, method: Any, request: Any) -> Iterator[Any]:
    """Every page of a list, one call each."""
    while True:
        page = wire.call(method, request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
