from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.cli import feature_labels
from trephine.client.cli.arguments import DEFAULT_MODEL, DetachOption, ModelOption, path_argument, path_option
from trephine.client.cli.feature_labels import AuthorOption, whoami
from trephine.client.cli.feature_sets import (
    FeatureArgument,
    FeaturesArgument,
    IndexOption,
    LayersOption,
    SetOption,
    address,
    addresses,
    features_of,
    texts_of,
)
from trephine.client.cli.feature_text import index_row, show_description, show_index, show_top
from trephine.client.cli.help_text import examples
from trephine.client.cli.highlight import show_tokens
from trephine.client.cli.invocation import invocation
from trephine.client.cli.predictions import require_files
from trephine.client.cli.sets import note_caveats, note_degraded, read_layers
from trephine.client.decoding import message_json
from trephine.client.downloads import write_file
from trephine.client.types import Activations
from trephine.v1 import feature_service_pb2 as pb

app = typer.Typer(
    no_args_is_help=True, help="Look at features: what they do, where they fire, what they mean."
)
app.add_typer(feature_labels.app, name="labels")

TextArgument = Annotated[str, typer.Argument(help="Any text of at least two tokens.")]
TopOption = Annotated[int | None, typer.Option(help="How many; unset 20, 5 per token.")]


@app.command(
    epilog=examples(
        'trephine features activations "The capital of France is Paris" 12:345 20:17',
        'trephine features activations "The capital of France" 12:345 --set smollm2-135m-tc --out page.html',
    )
)
def activations(
    context: typer.Context,
    text: TextArgument,
    features: FeaturesArgument,
    set_name: SetOption = "",
    out: Annotated[Path | None, path_option("--out", "Also write them as one HTML page.")] = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Show what features do at every token of a text, highlighted by strength."""
    given = invocation(context)
    with given.connect() as trephine:
        found = features_of(given, trephine, model, set_name).activations(text, addresses(features, set_name))
    if given.output.json:
        given.output.document(found.to_json())
    elif given.output.terminal:
        for one in found.features:
            largest = max(one.values, key=abs)
            head = f"{one.feature!s:>12}  {largest:+9.3f}  "
            show_tokens(given.output, head, found.tokens, one.values)
    else:
        given.output.table(*_activation_table(found))
    note_degraded(given.output, any(one.degraded for one in found.features))
    note_caveats(given.output, found.caveats)
    if out is not None:
        given.output.note(f"wrote {write_file(out, found.html().encode())}")


@app.command(
    epilog=examples(
        'trephine features top "When Mary and John went to the store"',
        'trephine features top "When Mary and John went" --per-token --layers 10-20',
    )
)
def top(
    context: typer.Context,
    text: TextArgument,
    set_name: SetOption = "",
    per_token: Annotated[bool, typer.Option("--per-token", help="Rank at every token apart.")] = False,
    layers: LayersOption = None,
    count: TopOption = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """List the strongest features of a text, by |activation| x decoder norm; position 0 is left out."""
    given = invocation(context)
    with given.connect() as trephine:
        found = features_of(given, trephine, model, set_name).top(
            text, per_token=per_token, layers=read_layers(layers), count=count
        )
    show_top(given.output, found, per_token=per_token)
    note_degraded(given.output, found.degraded)
    note_caveats(given.output, found.caveats)


@app.command(epilog=examples("trephine features describe 12:345 --set smollm2-135m-tc"))
def describe(
    context: typer.Context,
    feature: FeatureArgument,
    set_name: SetOption = "",
    index: IndexOption = None,
    contexts: Annotated[int, typer.Option(help="Contexts to print.")] = 8,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Say everything that is known of a feature: what it writes, where it fires, what is near it."""
    given = invocation(context)
    with given.connect() as trephine:
        found = features_of(given, trephine, model, set_name).describe(
            address(feature, set_name), index=index
        )
    show_description(given.output, found, contexts)


@app.command(
    epilog=examples(
        'trephine features search --token " Paris" --set smollm2-135m-tc',
        'trephine features search --text "to be or not to be"',
        'trephine features search --label "city names"',
    )
)
def search(
    context: typer.Context,
    token: Annotated[str | None, typer.Option(help="Fires mostly on this token; needs an index.")] = None,
    text: Annotated[str | None, typer.Option(help="Strongest features of this text.")] = None,
    label: Annotated[str | None, typer.Option(help="Every word must be in the label.")] = None,
    set_name: SetOption = "",
    index: IndexOption = None,
    count: Annotated[int, typer.Option(help="At most this many.")] = 20,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Find features by a token, by a text or by a label."""
    given = invocation(context)
    with given.connect() as trephine:
        found = features_of(given, trephine, model, set_name).search(
            token=token, text=text, label=label, index=index, count=count
        )
    if given.output.json:
        given.output.document(found.to_json())
        return
    rows = [(str(one.feature), f"{one.score:.3f}", one.why, one.label) for one in found]
    given.output.table(("FEATURE", "SCORE", "WHY", "LABEL"), rows)
    note_degraded(given.output, any(one.degraded for one in found))
    note_caveats(given.output, found.caveats)


@app.command(epilog=examples("trephine features contrast french.txt english.txt --set smollm2-135m-tc"))
def contrast(
    context: typer.Context,
    first: Annotated[Path, path_argument("FIRST", "A file with one text per line, at least two.")],
    second: Annotated[Path, path_argument("SECOND", "The same, of the other kind.")],
    set_name: SetOption = "",
    layers: LayersOption = None,
    count: Annotated[int | None, typer.Option(help="Features to list; unset 20.")] = None,
    permutations: Annotated[int | None, typer.Option(help="Random relabelings; unset 999.")] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Find the features that tell two sets of texts apart, with AUROC, permutation p and q."""
    given = invocation(context)
    one_side, other = texts_of(first), texts_of(second)
    with given.connect() as trephine:
        found = features_of(given, trephine, model, set_name).contrast(
            one_side, other, layers=read_layers(layers), count=count, permutations=permutations, seed=seed
        )
    if given.output.json:
        given.output.document(found.to_json())
        return
    rows = [
        (
            str(one.feature),
            f"{one.mean_difference:+.3f}",
            f"{one.auroc:.3f}",
            f"{one.p_value:.4f}",
            f"{one.q_value:.4f}",
            one.label,
        )
        for one in found.features
    ]
    given.output.table(("FEATURE", "DIFFERENCE", "AUROC", "P", "Q", "LABEL"), rows)
    given.output.note(f"{found.compared} features compared, {found.permutations} permutations")
    note_caveats(given.output, found.caveats)
    note_degraded(given.output, found.degraded)


@app.command(
    epilog=examples(
        "trephine features index --set smollm2-135m-tc --corpus wiki.txt --max-tokens 200000",
        "trephine features index --corpus wiki.jsonl --dry-run",
    )
)
def index(
    context: typer.Context,
    corpus: Annotated[
        Path | None,
        path_option("--corpus", "Text (documents apart by blank lines) or JSONL; unset: the built-in text."),
    ] = None,
    set_name: SetOption = "",
    layers: LayersOption = None,
    max_tokens: Annotated[int | None, typer.Option(help="Where to stop; unset 1,048,576.")] = None,
    context_tokens: Annotated[int | None, typer.Option(help="Longest context; unset 128.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and predict time, memory and disk.")
    ] = False,
    detach: DetachOption = False,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Run a corpus once and index what every feature does on it.

    It is durable: after a crash or a cancellation the same command goes on where it was, and an index
    that exists is no work.
    """
    given = invocation(context)
    require_files(predict=dry_run, detach=detach, option="--dry-run")
    with given.connect() as trephine:
        features = features_of(given, trephine, model, set_name)
        chosen: dict[str, Any] = {
            "layers": read_layers(layers),
            "max_tokens": max_tokens,
            "context_tokens": context_tokens,
        }
        if dry_run:
            found = features.predict_index(corpus, **chosen)
        else:
            started = features.start_index(corpus, **chosen)
            found = given.complete(trephine, started, "index", detach=detach)
    show_index(given.output, found)


@app.command()
def indexes(context: typer.Context) -> None:
    """List finished indexes, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.features.indexes()
    if given.output.json:
        messages = [one.message for one in found]
        given.output.document(message_json(pb.ListFeatureIndexesResponse(indexes=messages)))  # type: ignore[arg-type]
        return
    rows = [index_row(one) for one in found]
    given.output.table(("NAME", "SET", "MODEL", "CORPUS", "TOKENS", "SIZE", "CREATED"), rows)


@app.command("delete-index")
def delete_index(
    context: typer.Context, name: Annotated[str, typer.Argument(help="featureIndexes/...")]
) -> None:
    """Forget an index."""
    given = invocation(context)
    with given.connect() as trephine:
        trephine.features.delete_index(name)
    given.output.note(f"deleted {name}")


@app.command(epilog=examples('trephine features label 12:345 "city names" --set smollm2-135m-tc'))
def label(
    context: typer.Context,
    feature: FeatureArgument,
    text: Annotated[str, typer.Argument(help="One line; empty forgets the label.")],
    set_name: SetOption = "",
    author: AuthorOption = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Call a feature something; the last write wins."""
    given = invocation(context)
    with given.connect() as trephine:
        features = features_of(given, trephine, model, set_name)
        if not text:
            features.delete_label(address(feature, set_name))
            given.output.note(f"forgot the label of {feature}")
            return
        stored = features.set_label(address(feature, set_name), text, author=author or whoami())
    if given.output.json:
        given.output.document(stored.to_json())
    else:
        given.output.note(f"{stored.feature} is called {stored.text!r}")


@app.command(epilog=examples("trephine features page 12:345 20:17 --set smollm2-135m-tc --out out/features"))
def page(
    context: typer.Context,
    features: FeaturesArgument,
    out: Annotated[Path, path_option("--out", "Folder for the pages.")],
    set_name: SetOption = "",
    around: Annotated[
        int, typer.Option(help="Also write the pages of so many neighbours and partners of each.")
    ] = 0,
    index: IndexOption = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Write one self-contained HTML page per feature; they link to one another."""
    given = invocation(context)
    with given.connect() as trephine:
        looked_at = features_of(given, trephine, model, set_name)
        chosen = {(one.layer, one.index): None for one in addresses(features, set_name)}
        for place in tuple(chosen) if around else ():
            found = looked_at.describe(place, index=index)
            partners = found.statistics.cofiring if found.statistics else ()
            near = [one.feature for one in found.neighbours[:around]]
            near += [one.feature for one in partners[:around]]
            for one in near:
                chosen.setdefault((one.layer, one.index))
        for path in looked_at.save_pages(tuple(chosen), out, index=index):
            given.output.line(str(path))


def _activation_table(found: Activations) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row per token and a column per feature, for programs that read lines."""
    head = ("POSITION", "TOKEN", *(str(one.feature) for one in found.features))
    rows = [
        (str(place), token.display, *(f"{one.values[place]:.4f}" for one in found.features))
        for place, token in enumerate(found.tokens)
    ]
    return head, rows
