"""A finished evaluation of a replacement set: its figures, its pages and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trephine.client import replacement_requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.blocking import run_blocking
from trephine.client.aio.notebooks import evaluation_view
from trephine.client.aio.wire import AsyncWire
from trephine.client.descriptions import described, of_evaluation
from trephine.client.downloads import write_file
from trephine.client.evaluation_files import files_of
from trephine.client.types import EvaluationInfo


class AsyncEvaluation:
    """How good a set is, with its controls beside it, stored on the server."""

    def __init__(self, wire: AsyncWire, info: EvaluationInfo) -> None:
        self._wire = wire
        self.info = info

    def __repr__(self) -> str:
        return described(self, of_evaluation(self.info))

    @property
    def name(self) -> str:
        """Resource name, `evaluations/...`."""
        return self.info.name

    def to_json(self) -> str:
        """The evaluation in proto-JSON."""
        return self.info.to_json()

    async def html(self) -> str:
        """One self-contained page with table and plots."""
        rendered = await self._render("html")
        return rendered.decode()

    async def csv(self) -> str:
        """One line per figure."""
        rendered = await self._render("csv")
        return rendered.decode()

    async def json(self) -> dict[str, Any]:
        """Everything, the set's admission included."""
        found: dict[str, Any] = json.loads(await self._render("json"))
        return found

    async def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write `evaluation.html`, `.json` and `.csv` into a folder, or one file of these kinds."""
        written = []
        for form, file in files_of(Path(path)):
            data = await self._render(form)
            written.append(await run_blocking(write_file, file, data))
        return tuple(written)

    async def _render(self, form: str) -> bytes:
        request = replacement_requests.render(self.name, form)
        rendered = await self._wire.call(self._wire.replacements.RenderEvaluation, request)
        return await AsyncArtifacts(self._wire).read(rendered.artifact)

    def _repr_html_(self) -> str | None:
        return evaluation_view(self)
