"""Items that the model's context has no room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trephine.domain.errors import PromptTooLongError


@contextmanager
def item_named(indices: Sequence[int]) -> Iterator[None]:
    """Say which item is too long, and what makes items shorter.

    Args:
        indices: For every text that the subject is asked about, the item that it belongs to.

    Raises:
        PromptTooLongError: In the place of the subject's.
    """
    try:
        yield
    except PromptTooLongError as error:
        text = error.context.get("text")
        if not isinstance(text, int) or not 0 <= text < len(indices):
            raise
        counts = {key: value for key, value in error.context.items() if key in ("tokens", "room", "limit")}
        taken = f"{counts.get('tokens', '?')} tokens and {counts.get('room', 0)} new ones"
        raise PromptTooLongError(
            f"items[{indices[text]}] takes {taken}, the model's context holds {counts.get('limit', '?')}; "
            "set fewer demonstrations or a smaller max_new_tokens, word the question shorter, or audit a "
            "model with a longer context",
            field="parameters.demonstrations",
            item=indices[text],
            **counts,
        ) from error
