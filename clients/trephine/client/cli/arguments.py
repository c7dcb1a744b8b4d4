"""How features, changes and positions are written on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.errors import InvalidRequestError
from trephine.client.interventions import Handle, Intervention, feature
from trephine.client.types import EditUse

DEFAULT_MODEL = "smollm2"

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A name (smollm2) or a folder (./my-model).")]
TargetOption = Annotated[
    str,
    typer.Option("--target", "-t", help="The token to explain: exactly one, mind the leading space, or #ID."),
]
AgainstOption = Annotated[
    str | None, typer.Option("--against", "-a", help="The token it competes with. Unset: the mean logit.")
]
FeatureOption = Annotated[
    list[str] | None,
    typer.Option(
        "--feature", "-f", help="A neuron as LAYER:INDEX, a set's feature as SET:LAYER:INDEX. Repeatable."
    ),
]
ChangeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--change",
        help="Change a feature: 12:345=8 (set), 12:345+=8 (add), 12:345*0.5 (scale). Repeatable.",
    ),
]
EditOption = Annotated[
    list[str] | None,
    typer.Option("--edit", help="A stored edit: quiet, quiet@2, or quiet=0.5 for half as far. Repeatable."),
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Start the work, print its operation's name, and leave.")
]


def require_waiting(*files: Path | None, detach: bool) -> None:
    """Refuse files together with `--detach`: nobody is there to write them once the work has ended.

    Raises:
        InvalidRequestError: If one is named.
    """
    if detach and any(file is not None for file in files):
        raise InvalidRequestError(
            "files are written once the work has ended, and --detach does not wait for that; leave it out, "
            "or the files, and ask for what was found later",
            field="detach",
        )


def _given_path(name: str) -> Callable[[str | Path], Path]:
    """Return a reader of paths that refuses an empty one, which Python takes for the current folder.

    A default is read as well, and is a path already.

    Args:
        name: Of the option or the argument.
    """

    def path(text: str | Path) -> Path:
        if not str(text).strip():
            raise InvalidRequestError(
                f"{name} is empty and names no file or folder; write which, or . for the current folder",
                field=name.removeprefix("--").replace("-", "_"),
            )
        return Path(text)

    return path


def path_option(name: str, said: str, **more: Any) -> Any:
    """Return an option that is a path, or several, and an error where it is an empty one.

    Every path of a command is declared by this or by `path_argument`.

    Args:
        name: As it is typed, `--out`.
        said: Its help.
        more: Further arguments of `typer.Option`.
    """
    return typer.Option(name, parser=_given_path(name), help=said, **more)


def path_argument(name: str, said: str, **more: Any) -> Any:
    """Return an argument that is a path, and an error where it is an empty one.

    Args:
        name: As errors say it, `FILE`.
        said: Its help.
        more: Further arguments of `typer.Argument`.
    """
    return typer.Argument(parser=_given_path(name), help=said, **more)


_ADDRESS = r"(?:(?P<set>[A-Za-z0-9][A-Za-z0-9._-]*):)?(?P<layer>\d+):(?P<index>\d+)"
_VALUE = r"(?P<value>[-+]?[\d.]+(?:[eE][-+]?\d+)?|nan|inf)"
_FEATURE = re.compile(_ADDRESS)
_CHANGE = re.compile(rf"{_ADDRESS}(?:(?P<sign>[=*]|\+=|-=){_VALUE})?")


def read_feature(text: str) -> Handle:
    """Read `12:345`, or `my-set:12:345` of a replacement set.

    Raises:
        InvalidRequestError: If it is something else.
    """
    match = _FEATURE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(
            f"{text!r} is no feature; write LAYER:INDEX, as in 12:345, or SET:LAYER:INDEX", field="feature"
        )
    return _handle(match)


def read_change(text: str) -> Intervention:
    """Read `12:345` (ablate), `12:345=8` (set), `12:345+=8`, `12:345-=8` (add), `12:345*0.5` (scale).

    A replacement set's feature has the set's name in front: `my-set:12:345+=8`.

    Raises:
        InvalidRequestError: If it is something else.
    """
    match = _CHANGE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(
            f"{text!r} is no change; write 12:345=8 (set), 12:345+=8 (add), 12:345*0.5 (scale) "
            "or 12:345 (ablate); a set's feature has SET: in front",
            field="steer",
        )
    handle = _handle(match)
    if match["sign"] is None:
        return handle.ablate()
    value = float(match["value"])
    if match["sign"] == "=":
        return handle.set(value)
    if match["sign"] == "*":
        return handle.scale(value)
    return handle.add(value if match["sign"] == "+=" else -value)


def read_positions(text: str) -> tuple[int, ...]:
    """Read `4,5,-1`.

    Raises:
        InvalidRequestError: If it is something else.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as failure:
        raise InvalidRequestError(
            f"{text!r} are no positions; write them as in 4,5,-1", field="positions"
        ) from failure


def ablations(features: Sequence[str] | None, factor: float | None = None) -> list[Intervention]:
    """Ablate (or scale) every feature that was named."""
    handles = [read_feature(text) for text in features or ()]
    return [handle.ablate() if factor is None else handle.scale(factor) for handle in handles]


def read_edits(texts: Sequence[str]) -> list[EditUse]:
    """Read `quiet`, `quiet@2`, `quiet=0.5` or `quiet@2=0.5`.

    Raises:
        InvalidRequestError: If a strength is no number.
    """
    found: list[EditUse] = []
    for text in texts:
        name, given, strength = text.partition("=")
        try:
            found.append(EditUse(edit=name, strength=float(strength) if given else None))
        except ValueError as failure:
            raise InvalidRequestError(
                f"{text!r} is no edit; write NAME, NAME@VERSION, or either with =STRENGTH", field="edit"
            ) from failure
    return found


def interventions_from(
    features: Sequence[str] | None, factor: float | None, changes: Sequence[str] | None
) -> list[Intervention]:
    """Features to ablate or scale, then changes, in their order."""
    return [*ablations(features, factor), *(read_change(text) for text in changes or ())]


def _handle(match: re.Match[str]) -> Handle:
    return feature(int(match["layer"]), int(match["index"]), replacement=match["set"] or "")
