"""Progress on stderr: a moving bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from trephine.client.cli.output import Output
from trephine.client.terminal import printable
from trephine.client.types import PartialCircuit, Progress

LINE_SECONDS = 2.0
"""Off a terminal at most one line of a stage in this time; stages may take turns."""


class ProgressView:
    """Shows what `on_progress` is told. Use as a context manager and pass `show`."""

    def __init__(self, output: Output, what: str) -> None:
        self._output = output
        self._what = what
        self._last: dict[str, float] = {}
        self._task: TaskID | None = None
        self._bars: Bars | None = None

    def __enter__(self) -> ProgressView:
        if self._output.errors.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._output.errors,
                transient=True,
            )
            self._bars.start()
            self._task = self._bars.add_task(self._what, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Take one report."""
        text = f"{self._what}: {printable(progress.stage)}"
        if progress.detail:
            text += f" ({printable(progress.detail)})"
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, description=text, completed=progress.done, total=progress.total or None
            )
        else:
            self._line(text, progress)

    def partial(self, graph: PartialCircuit) -> None:
        """Take a graph that is still growing: what it holds, and its strongest nodes."""
        several = len({one.replacement for one in graph.nodes}) > 1
        strongest = ", ".join(
            f"{f'{one.replacement}:' if several else ''}{one.layer}:{one.feature} @{one.position}"
            for one in graph.nodes[:3]
        )
        found = f"{graph.expanded} features hold {graph.inside:.0%}; strongest {strongest}"
        self.show(Progress(stage="so far", done=0, total=0, detail=found))

    def bytes(self, received: int, total: int) -> None:
        """Take a report of a download."""
        self.show(Progress(stage="download, MB", done=received // 1_000_000, total=total // 1_000_000))

    def _line(self, text: str, progress: Progress) -> None:
        now = time.monotonic()
        last = self._last.get(progress.stage)
        if last is not None and now - last < LINE_SECONDS:
            return
        self._last[progress.stage] = now
        self._output.note(f"{text} {progress.done}/{progress.total}" if progress.total else text)
