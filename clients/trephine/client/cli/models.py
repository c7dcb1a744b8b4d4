from __future__ import annotations

from typing import Annotated

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, DetachOption
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.service import make_folder
from trephine.client.decoding import message_json
from trephine.client.types import Capabilities, LoadedSet, ModelInfo
from trephine.v1 import model_service_pb2

app = typer.Typer(no_args_is_help=True, help="Fetch, load and describe models.")

_SET_COLUMNS = (
    "SET", "LAYERS", "SIZE", "BUDGET", "RESIDENT", "AT MOST", "PINNED", "PAGED IN", "PAGED OUT"
)  # fmt: skip
NameArgument = Annotated[str, typer.Argument(help="A name (smollm2) or a folder (./my-model).")]


@app.command(
    epilog=examples(
        "trephine models fetch smollm2",
    )
)
def fetch(
    context: typer.Context, name: Annotated[str, typer.Argument(help="Which model.")] = DEFAULT_MODEL
) -> None:
    """Download a model once and convert it into the cache folder."""
    raise typer.Exit(make_folder(invocation(context).output, "fetch", name))


@app.command(
    epilog=examples(
        "trephine models load smollm2 --dtype bfloat16 --as smollm2-bf16",
        "trephine models load smollm2 --device cuda",
        "trephine models load ~/.cache/huggingface/hub/models--org--name --revision v1.0",
    )
)
def load(
    context: typer.Context,
    name: NameArgument = DEFAULT_MODEL,
    dtype: Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float64.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu (default), cuda, or one of several GPUs of the server's machine: cuda:1."),
    ] = None,
    alias: Annotated[str | None, typer.Option("--as", help="Name to serve it under.")] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit or ref of a folder in Hugging Face's cache; unset: main."),
    ] = None,
    detach: DetachOption = False,
) -> None:
    """Load a model. It stays loaded as long as the server runs; see `trephine serve`."""
    given = invocation(context)
    with given.connect() as trephine:
        started = trephine.start_load(name, dtype=dtype, device=device, name=alias, revision=revision)
        model = given.complete(trephine, started, f"load {name}", detach=detach)
        if given.output.json:
            given.output.document(model.to_json())
        else:
            given.output.facts(facts_of(model.info))


@app.command("list")
def list_models(context: typer.Context) -> None:
    """List the models in the server's model roots, loaded or not."""
    given = invocation(context)
    with given.connect() as trephine:
        models = trephine.models.list()
    if given.output.json:
        messages = [model.message for model in models]
        given.output.document(message_json(model_service_pb2.ListModelsResponse(models=messages)))  # type: ignore[arg-type]
        return
    rows = [(_short(model.name), model.state.value, model.architecture, model.dtype) for model in models]
    given.output.table(("NAME", "STATE", "ARCHITECTURE", "DTYPE"), rows)


@app.command()
def describe(context: typer.Context, name: NameArgument = DEFAULT_MODEL) -> None:
    """Load a model if need be, and say what it is and what can be done with it."""
    given = invocation(context)
    with given.connect() as trephine:
        found = given.load(trephine, name).capabilities()
    if given.output.json:
        given.output.document(found.to_json())
        return
    given.output.facts([*facts_of(found.model), *_limits(found)])
    rows = [(one.name, "yes" if one.available else "no", one.note) for one in found.capabilities]
    given.output.table(("CAPABILITY", "WORKS", "NOTE"), rows)
    if found.replacements:
        given.output.table(_SET_COLUMNS, [_set_row(loaded) for loaded in found.replacements])


def facts_of(info: ModelInfo) -> list[tuple[str, str]]:
    """A model's figures, for people."""
    return [
        ("model", _short(info.name)),
        ("architecture", info.architecture),
        ("weights", info.weight_hash),
        ("dtype, device", f"{info.dtype}, {info.device}"),
        ("layers", str(info.n_layers)),
        ("heads", f"{info.n_heads} ({info.n_kv_heads} key-value)"),
        ("d_model, d_mlp", f"{info.d_model}, {info.d_mlp}"),
        ("vocabulary", str(info.d_vocab)),
        ("context", f"{info.context_length} tokens"),
        ("parameters", f"{info.n_parameters:,} in {info.memory_bytes / 1e6:,.0f} MB"),
    ]


def _limits(found: Capabilities) -> list[tuple[str, str]]:
    return [
        ("longest prompt", f"{found.max_prompt_tokens} tokens, continuation included"),
        ("rows of one call", str(found.max_rows)),
    ]


def _set_row(loaded: LoadedSet) -> tuple[str, ...]:
    where = loaded.residency
    sizes = (
        where.total_bytes,
        where.budget_bytes,
        where.resident_bytes,
        where.peak_bytes,
        where.pinned_bytes,
    )
    name = f"{loaded.name} (degraded)" if loaded.degraded else loaded.name
    megabytes = (f"{size / 1e6:,.1f} MB" for size in sizes)
    return (name, str(loaded.layers), *megabytes, str(where.loads), str(where.evictions))


def _short(name: str) -> str:
    return name.removeprefix("models/")
