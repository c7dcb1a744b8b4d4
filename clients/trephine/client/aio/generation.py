"""Text as it is generated."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any

from trephine.client.decoding import decode
from trephine.client.errors import InternalError
from trephine.client.types import Generation, TokenEvent


class AsyncGenerationStream:
    """Tokens of all rows in the order in which they come; then `result` holds the completions.

    Leaving it early (`close`, or the end of its `async with` block) ends the work on the server.
    """

    def __init__(self, responses: AsyncGenerator[Any, None]) -> None:
        self._responses = responses
        self._finished: Generation | None = None

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        async for response in self._responses:
            if response.WhichOneof("event") == "finished":
                self._finished = decode(Generation, response.finished)
            else:
                yield decode(TokenEvent, response.token)

    async def result(self) -> Generation:
        """Take what is left and return the completions.

        Raises:
            InternalError: If the stream ended without them.
        """
        async for _ in self:
            continue
        if self._finished is None:
            raise InternalError("the generation ended without its completions")
        return self._finished

    async def close(self) -> None:
        """End the call."""
        await self._responses.aclose()

    async def __aenter__(self) -> AsyncGenerationStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
