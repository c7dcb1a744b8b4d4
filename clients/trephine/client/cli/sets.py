"""How replacement sets, their layers and their memory are written on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from trephine.client.cli.invocation import Invocation
from trephine.client.cli.output import Output
from trephine.client.errors import InvalidRequestError, ReplacementNotFoundError
from trephine.client.model import Model
from trephine.client.replacements import ReplacementSet
from trephine.client.sources import REPLACEMENT_SET, source_of
from trephine.client.terminal import printable
from trephine.client.trephine import Trephine
from trephine.client.types import ReplacementState

SetArgument = Annotated[
    str, typer.Argument(metavar="SET", help="A set in a replacement root (smollm2-135m-tc), or a folder.")
]
ReplacementsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--replacements",
        "-r",
        metavar="SET",
        help="Load this set, or folder, so that SET:LAYER:INDEX names its features. May be repeated.",
    ),
]
AcceptDegradedOption = Annotated[
    bool, typer.Option("--accept-degraded", help="Load it even if it fails admission; results say so.")
]
UnverifiedOption = Annotated[
    bool,
    typer.Option("--unverified-format", help="Load a format that could not be tested against its writer."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(help="Resident weights at most, as in 200MB or 2GiB; unset: half of what is free."),
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="saelens, circuit-tracer, ...; unset: told from the files.")
]

DEGRADED = "the set failed admission and was accepted all the same"

_BYTES = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kKmMgGtT]?)(?P<binary>i?)[bB]?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def open_sets(
    given: Invocation, trephine: Trephine, model: Model, names: Sequence[str] | None
) -> tuple[ReplacementSet, ...]:
    """The sets of `--replacements`, each loaded if it is not yet."""
    return tuple(open_set(given, trephine, model, name) for name in names or ())


def open_set(
    given: Invocation, trephine: Trephine, model: Model, name_or_folder: str, **options: Any
) -> ReplacementSet:
    """A set beside a model, loaded if it is not yet; progress on stderr, Ctrl-C cancels.

    A set that is loaded under that name already is used as it is, degraded or not: whoever loaded it
    chose so, and every result tells.
    """
    if source_of(name_or_folder, REPLACEMENT_SET).folder is None and not any(options.values()):
        ready = _loaded(model, name_or_folder.removeprefix("replacements/"))
        if ready is not None:
            return ready
    started = model.start_load_replacements(name_or_folder, **options)
    return given.complete(trephine, started, f"load {name_or_folder}")


def opened_name(
    given: Invocation, trephine: Trephine, model: Model, name: str, *, own: Sequence[str] = ("neurons",)
) -> str:
    """Load a set if need be and return what it is called; what every model has is taken by its name."""
    return name if name in own else open_set(given, trephine, model, name).set_id


def note_degraded(output: Output, degraded: bool) -> None:
    """Say beside a result that it comes from a set that failed admission; JSON holds the flag itself."""
    if degraded and not output.json:
        output.note(f"degraded: {DEGRADED}")


def note_caveats(output: Output, caveats: Iterable[str]) -> None:
    """Say beside a result what a reader must know of its text; JSON holds that itself."""
    for caveat in () if output.json else caveats:
        output.note(f"note: {printable(caveat)}")


def read_bytes(text: str | None) -> int | None:
    """Read `200MB` (powers of 1000) or `2GiB` (powers of 1024); None stays None.

    Raises:
        InvalidRequestError: If it is something else.
    """
    if text is None:
        return None
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(
            f"{text!r} is no size; write it as in 200MB or 2GiB", field="memory_budget_bytes"
        )
    base = 1024 if match["binary"] else 1000
    return int(float(match["number"]) * base ** _POWERS[match["prefix"].lower()])


def read_layers(text: str | None) -> tuple[int, ...] | None:
    """Read `0,5,10-12`; None stays None.

    Raises:
        InvalidRequestError: If it is something else.
    """
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise InvalidRequestError(f"{text!r} are no layers; write them as in 0,5,10-12", field="layers")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InvalidRequestError(
                f"{part.strip()!r} ends before it begins; write it as {last}-{first}", field="layers"
            )
        layers += range(first, last + 1)
    return tuple(layers)


def _loaded(model: Model, name: str) -> ReplacementSet | None:
    try:
        found = model.replacement(name)
    except ReplacementNotFoundError:
        return None
    return found if found.info.state is ReplacementState.LOADED else None
