"""Files that an evaluation of a replacement set is written to."""

from __future__ import annotations

from pathlib import Path

from trephine.client.errors import InvalidRequestError

FORMS = ("html", "json", "csv")


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
