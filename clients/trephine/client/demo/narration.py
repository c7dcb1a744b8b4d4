"""How the demo tells what it does: chapters, sentences, tables, and the time each took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trephine.client.cli.output import Output
from trephine.client.cli.progress import ProgressView
from trephine.client.downloads import write_file
from trephine.client.terminal import printable


class Narrator:
    """Tells the story on stdout, and keeps its figures for `summary.json`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._began = time.monotonic()
        self.figures: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def chapter(self, key: str, title: str) -> Iterator[dict[str, Any]]:
        """Tell a chapter; the mapping that it yields goes into the summary under `key`."""
        began = time.monotonic()
        self.say()
        self.say(title)
        self.say("-" * len(title))
        self.figures[key] = {}
        yield self.figures[key]
        self._seconds[key] = round(time.monotonic() - began, 2)
        self.say(f"({self._seconds[key]:.1f} s)")

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def say(self, text: str = "") -> None:
        """A line."""
        if self._output.json:
            self._output.note(text)
        else:
            self._output.line(text)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one a line."""
        for name, value in pairs:
            self.say(f"  {name:<15} {printable(value)}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table in plain columns, the same on a terminal and in a log."""
        shown = [list(columns), *([printable(cell) for cell in row] for row in rows)]
        widths = [max(len(row[place]) for row in shown) for place in range(len(columns))]
        for row in shown:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.say(f"  {'  '.join(cells)}".rstrip())

    def working(self, what: str) -> ProgressView:
        """Progress of one piece of work, on stderr."""
        return ProgressView(self._output, what)

    def summarise(self, path: Path) -> None:
        """Write every figure and timing; with `--json` print them too."""
        total = round(self.seconds, 2)
        text = json.dumps(self.figures | {"seconds": self._seconds | {"total": total}}, indent=2)
        write_file(path, text.encode() + b"\n")
        if self._output.json:
            self._output.document(text)
