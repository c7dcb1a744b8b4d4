"""A finished evaluation of a replacement set: its figures, its pages and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trephine.client import replacement_requests
from trephine.client.artifacts import Artifacts
from trephine.client.descriptions import described, of_evaluation
from trephine.client.downloads import write_file
from trephine.client.errors import InvalidRequestError
from trephine.client.types import EvaluationInfo
from trephine.client.wire import Wire

FORMS = ("html", "json", "csv")


class Evaluation:
    """How good a set is, with its controls beside it, stored on the server."""

    def __init__(self, wire: Wire, info: EvaluationInfo) -> None:
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

    def html(self) -> str:
        """One self-contained page with table and plots."""
        return self._render("html").decode()

    def csv(self) -> str:
        """One line per figure."""
        return self._render("csv").decode()

    def json(self) -> dict[str, Any]:
        """Everything, the set's admission included."""
        found: dict[str, Any] = json.loads(self._render("json"))
        return found

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write `evaluation.html`, `.json` and `.csv` into a folder, or one file of these kinds."""
        return tuple(write_file(file, self._render(form)) for form, file in files_of(Path(path)))

    def _render(self, form: str) -> bytes:
        request = replacement_requests.render(self.name, form)
        rendered = self._wire.call(self._wire.replacements.RenderEvaluation, request)
        return Artifacts(self._wire).read(rendered.artifact)

    def _repr_html_(self) -> str:
        return self.html()


def files_of(path: Path) -> tuple[tuple[str, Path], ...]:
    """Which forms are written where: a file by its suffix, or all into a folder.

    Raises:
        InvalidRequestError: If the suffix is of another kind.
    """
    form = path.suffix[1:]
    if form in FORMS:
        return ((form, path),)
    if form and not path.is_dir():
        raise InvalidRequestError(
            f"{path} is neither a folder nor one of {', '.join(f'*.{one}' for one in FORMS)}", field="path"
        )
    return tuple((one, path / f"evaluation.{one}") for one in FORMS)
