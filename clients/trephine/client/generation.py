"""Text as it is generated."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from trephine.client.decoding import decode
from trephine.client.errors import InternalError
from trephine.client.types import Generation, TokenEvent


class GenerationStream:
    """Tokens of all rows in the order in which they come; then `result` holds the completions.

    Leaving it early (`close`, or the end of a `with` block) ends the work on the server.
    """

    def __init__(self, responses: Iterator[Any]) -> None:
        self._responses = responses
        self._finished: Generation | None = None

    def __iter__(self) -> Iterator[TokenEvent]:
        for response in self._responses:
            if response.WhichOneof("event") == "finished":
                self._finished = decode(Generation, response.finished)
            else:
                yield decode(TokenEvent, response.token)

    def result(self) -> Generation:
        """Take what is left and return the completions."""
        for _ in self:
            continue
        return finished(self._finished)

    def close(self) -> None:
        """End the call."""
        close = getattr(self._responses, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def finished(generation: Generation | None) -> Generation:
    """The completions, which every complete stream ends with.

    Raises:
        InternalError: If the stream ended without them.
    """
    if generation is None:
        raise InternalError("the generation ended without its completions")
    return generation
