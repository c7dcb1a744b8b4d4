"""Showing that an engine serves two at once: tokens arrive while an operation works."""

from __future__ import annotations

import time
from threading import Thread
from types import TracebackType
from typing import Any

from trephine.client.errors import TrephineError
from trephine.client.operations import Operation
from trephine.client.types import Progress


class Interleaving:
    """Watches an operation on a thread of its own, and counts the tokens that come meanwhile.

    Entering waits until the operation works; leaving waits until it is done.
    """

    def __init__(self, operation: Operation[Any]) -> None:
        self._operation = operation
        self._steps = 0
        self._last = 0.0
        self._failure: TrephineError | None = None
        self._thread = Thread(target=self._watch, name="watch-discovery", daemon=True)
        self.tokens = 0
        self.tokens_meanwhile = 0
        self.longest_gap = 0.0
        """Longest wait for a token, seconds."""

    def __enter__(self) -> Interleaving:
        self._thread.start()
        while self._steps == 0 and self._thread.is_alive():
            time.sleep(0.01)
        self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def token(self) -> None:
        """A token has come."""
        now = time.monotonic()
        self.longest_gap = round(max(self.longest_gap, now - self._last), 3)
        self._last = now
        self.tokens += 1
        self.tokens_meanwhile += self._thread.is_alive()

    def sentence(self) -> str:
        """What was seen, in a sentence."""
        return (
            f"{self.tokens_meanwhile} of {self.tokens} tokens came while the discovery worked in the same "
            f"engine; the longest wait for one was {self.longest_gap * 1000:.0f} ms."
        )

    def _watch(self) -> None:
        try:
            self._operation.result(on_progress=self._step)
        except TrephineError as failure:
            self._failure = failure

    def _step(self, progress: Progress) -> None:
        self._steps += 1
