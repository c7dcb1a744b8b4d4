from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trephine.client.cli.arguments import DEFAULT_MODEL, EditOption, ModelOption, read_change, read_edits
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.sets import ReplacementsOption, note_caveats, note_degraded, open_sets
from trephine.client.decoding import message_json
from trephine.client.errors import NonFiniteValueError
from trephine.client.generation import GenerationStream
from trephine.client.terminal import printable, printable_lines
from trephine.client.types import Applied, Completion
from trephine.v1 import generation_service_pb2

GENERATE_EXAMPLES = examples(
    'trephine generate "The capital of France is"',
    'trephine generate "Once upon a time" --steer 28:1300+=12',
)


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    steer: Annotated[
        list[str] | None,
        typer.Option(
            help="Change a neuron: 12:345=8, 12:345+=8, 12:345*0.5, or 12:345 to ablate it. "
            "A set's feature: SET:12:345+=8."
        ),
    ] = None,
    edits: EditOption = None,
    model: ModelOption = DEFAULT_MODEL,
    replacements: ReplacementsOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability.")] = 1.0,
    seed: Annotated[
        int, typer.Option(help="For a temperature above 0; the changed text draws as a second row.")
    ] = 0,
) -> None:
    """Continue a text; with --steer or --edit twice in one batch, plain and changed side by side.

    Without either it is continued as the model serves it, under its default edits if it has any.
    """
    given = invocation(context)
    changes = [read_change(text) for text in steer or ()]
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        open_sets(given, trephine, loaded, replacements)
        if changes or edits:
            named = read_edits(edits or ())
            with loaded.side_by_side(prompt, changes, edits=named, **options) as stream:
                _show_pair(given.output, stream)
                completions = stream.result().completions
                note_degraded(given.output, any(map(_is_degraded, completions)))
                _note_edits(given.output, completions)
                _require_answers(completions)
                note_caveats(given.output, dict.fromkeys(said for row in completions for said in row.caveats))
        else:
            with loaded.generate(prompt, **options) as stream:
                _show_one(given.output, stream)


def _show_one(output: Output, stream: GenerationStream) -> None:
    if output.json:
        _show_json(output, stream)
        return
    for event in stream:
        output.piece(printable_lines(event.text))
    output.line()
    completions = stream.result().completions
    _note_edits(output, completions)
    note_degraded(output, any(map(_is_degraded, completions)))
    note_caveats(output, dict.fromkeys(said for row in completions for said in row.caveats))


def _require_answers(completions: Sequence[Completion]) -> None:
    """Fail if a row overflows beside one that does not: what is shown of it is no answer."""
    for row in completions:
        if row.finish_reason == "overflow":
            raise NonFiniteValueError("an answer overflows, so that it is none: " + "; ".join(row.caveats))


def _is_degraded(row: Completion) -> bool:
    by_edits = [echo for one in row.edits for echo in one.applied]
    return any(echo.degraded for echo in (*row.applied, *by_edits))


def _note_edits(output: Output, completions: Sequence[Completion]) -> None:
    """Say under which versions of which edits rows were served, how often they wrote and changed."""
    for one in (edit for row in completions for edit in row.edits):
        output.note(printable(f"{one.edit} at strength {one.strength:g}: {_written(one.applied)}"))


def _written(applied: Sequence[Applied]) -> str:
    """Say how many activations were written, and how many of them became another value by it."""
    written = sum(echo.positions for echo in applied)
    if not written:
        return "it matched nothing, no activation written"
    counted = [echo.changed for echo in applied if echo.changed is not None]  # an older server counts none
    told = f", {sum(counted) or 'none'} changed" if len(counted) == len(applied) else ""
    return f"{written} activation{'s' if written > 1 else ''} written{told}"


def _show_pair(output: Output, stream: GenerationStream) -> None:
    if output.json:
        _show_json(output, stream)
    elif output.terminal:
        texts = ["", ""]
        with Live(_pair(texts), refresh_per_second=12) as live:
            for event in stream:
                texts[event.row] += event.text
                live.update(_pair(texts))
    else:
        for name, completion in zip(("plain", "changed"), stream.result().completions, strict=True):
            output.line(f"{name}: {printable_lines(completion.text)}")


def _show_json(output: Output, stream: GenerationStream) -> None:
    """One response of the stream a line, as it comes."""
    for event in stream:
        response = generation_service_pb2.GenerateResponse(token=event.message)  # type: ignore[arg-type]
        output.document(message_json(response, one_line=True))
    last = generation_service_pb2.GenerateResponse(finished=stream.result().message)  # type: ignore[arg-type]
    output.document(message_json(last, one_line=True))


def _pair(texts: list[str]) -> Table:
    table = Table(expand=True)
    table.add_column("plain", ratio=1)
    table.add_column("changed", ratio=1)
    table.add_row(*(Text(printable_lines(text)) for text in texts))
    return table
