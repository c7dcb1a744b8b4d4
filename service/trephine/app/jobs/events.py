"""What commands tell while they run, handed on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from trephine.domain.commands import Progress

OnProgress = Callable[[Progress], None]


def forwarded(on_progress: OnProgress) -> Callable[[Progress], Awaitable[None]]:
    """Return what an engine awaits for every event: whoever watches the operation is told."""

    async def tell(progress: Progress) -> None:
        on_progress(progress)

    return tell
