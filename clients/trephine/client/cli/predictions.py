"""`--predict` beside other options, the same in every command: where it is written, what it refuses."""

from __future__ import annotations

from pathlib import Path

from trephine.client.cli.arguments import require_waiting
from trephine.client.cli.output import Output
from trephine.client.downloads import require_writable, write_file
from trephine.client.errors import InvalidRequestError


def require_files(*files: Path | None, predict: bool, detach: bool, option: str = "--predict") -> None:
    """Refuse files and `--detach` where they do not go together, with each other and with `--predict`.

    Args:
        files: What is to be written.
        predict: Whether work is only predicted.
        detach: Whether it is left to itself.
        option: What the command calls the first.

    Raises:
        InvalidRequestError: If files are to be written of work that nobody waits for, or a prediction is to
            be detached, or written into anything but JSON.
        LocalFileError: If a prediction's file cannot be written.
    """
    if not predict:
        require_waiting(*files, detach=detach)
        return
    if detach:
        raise InvalidRequestError(
            f"{option} starts no work that could be left to itself: leave it out, or --detach", field="detach"
        )
    for file in files:
        if file is not None and file.suffix != ".json":
            raise InvalidRequestError(
                f"{file}: a prediction has nothing to write but its own document; name a .json file, or none",
                field="out",
            )
        if file is not None:
            require_writable(file)


def write_prediction(output: Output, file: Path | None, document: str) -> None:
    """Write what was predicted where it is asked for, and say so.

    Raises:
        LocalFileError: If it cannot be written.
    """
    if file is not None:
        output.note(f"wrote {write_file(file, document.encode())}")
