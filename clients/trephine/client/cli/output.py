"""Results on stdout, everything else on stderr. Data is never read as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trephine.client.terminal import printable


class Output:
    """Where a command writes."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    @property
    def terminal(self) -> bool:
        """True if a person reads the results as they come."""
        return self._out.is_terminal

    @property
    def errors(self) -> Console:
        """The console of progress."""
        return self._err

    def line(self, text: str = "") -> None:
        """A line of the result."""
        self._out.print(Text(text), soft_wrap=True)

    def styled(self, text: Text) -> None:
        """A line of the result with styles of its own, for people."""
        self._out.print(text, soft_wrap=True)

    def piece(self, text: str) -> None:
        """A piece of a line of the result, as it comes."""
        self._out.print(Text(text), end="", soft_wrap=True)

    def document(self, text: str) -> None:
        """A result for programs, byte for byte."""
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line that is no result."""
        self._err.print(Text(text), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table of the result; cells are shown escaped. Off a terminal: tab-separated lines."""
        shown = [[printable(cell) for cell in row] for row in rows]
        if not self.terminal:
            # Not through the console, which would turn the tabs into spaces.
            self.document("\n".join("\t".join(row) for row in [list(columns), *shown]))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in shown:
            table.add_row(*(Text(cell) for cell in row))
        self._out.print(table)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one a line."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            self.line(f"{name:<{width}}  {printable(value)}")


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
