"""Requests about replacement sets, built from plain arguments. Shared by both surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.requests import fresh_id, resource
from trephine.v1 import common_pb2
from trephine.v1 import replacement_service_pb2 as pb

NO_RECIPE = ("self", "set_id", "corpus")
"""Arguments of `predict_fit` that are no fields of a recipe."""


def set_name(model: str, name: str) -> str:
    """The resource name of a loaded set, given by its id or its name."""
    if name.startswith("models/"):
        return name
    return f"{resource('models', model)}/{resource('replacements', name)}"


def load_set(
    model: str, source: str, name: str | None, format: str | None, request_id: str | None, **options: Any
) -> pb.LoadReplacementSetRequest:
    """Load a set. `options` are fields of the request; None leaves one unset."""
    return pb.LoadReplacementSetRequest(
        model=model,
        source=source,
        set_id=name or "",
        format=pb.SetFormat.Value(enum_name("SET_FORMAT", format, pb.SetFormat, "format")),
        request_id=fresh_id(request_id),
        **_given(options),
    )


def evaluate(
    name: str,
    controls: Sequence[str] | None,
    request_id: str | None,
    **options: Any,
) -> pb.EvaluateReplacementSetRequest:
    """Measure a set; `controls` empty leaves them out, None means all."""
    chosen = [
        pb.Dictionary.Value(enum_name("DICTIONARY", control, pb.Dictionary, "controls"))
        for control in controls or ()
    ]
    return pb.EvaluateReplacementSetRequest(
        name=name,
        controls=chosen,
        without_controls=controls is not None and not chosen,
        request_id=fresh_id(request_id),
        **_given(options),
    )


def render(name: str, form: str) -> pb.RenderEvaluationRequest:
    """Ask for a rendered evaluation; `form` is `json`, `csv` or `html`."""
    return pb.RenderEvaluationRequest(
        name=resource("evaluations", name),
        format=pb.EvaluationFormat.Value(enum_name("EVALUATION_FORMAT", form, pb.EvaluationFormat, "format")),
    )


def fit(
    model: str, set_id: str, corpus: str, corpus_name: str, request_id: str | None, **recipe: Any
) -> pb.FitReplacementSetRequest:
    """Fit a set. `recipe` are fields of the recipe, and `end_to_end_tokens` and so on of its phase."""
    return pb.FitReplacementSetRequest(
        model=model,
        set_id=set_id,
        recipe=_recipe(**recipe),
        corpus=corpus,
        corpus_name=corpus_name,
        request_id=fresh_id(request_id),
    )


def enum_name(prefix: str, value: str | None, kind: Any, field: str) -> str:
    """`saelens` as `SET_FORMAT_SAELENS`; None is the zero value.

    Raises:
        InvalidRequestError: If there is no such value; the message lists those there are.
    """
    name = f"{prefix}_{'UNSPECIFIED' if value is None else str(value).upper().replace('-', '_')}"
    names = tuple(kind.DESCRIPTOR.values_by_name)
    if name not in names:
        known = ", ".join(one.removeprefix(f"{prefix}_").lower() for one in names[1:])
        raise InvalidRequestError(f"{field} is one of {known}, not {value!r}", field=field)
    return name


def corpus_media_type(path: Path) -> str:
    """What a corpus file is, by its name.

    Raises:
        LocalFileError: If there is no such file.
    """
    if not path.exists():
        raise LocalFileError(f"there is no corpus {path}")
    return "application/jsonl" if path.suffix in {".jsonl", ".ndjson"} else "text/plain; charset=utf-8"


def _recipe(
    kind: str | None = None,
    site: str | None = None,
    end_to_end_tokens: int | None = None,
    end_to_end_lr: float | None = None,
    local_control: bool | None = None,
    **options: Any,
) -> pb.FitRecipe:
    end_to_end = _given({"tokens": end_to_end_tokens, "lr": end_to_end_lr, "local_control": local_control})
    return pb.FitRecipe(
        kind=pb.LayerKind.Value(enum_name("LAYER_KIND", kind, pb.LayerKind, "recipe.kind")),
        site=common_pb2.SiteKind.Value(enum_name("SITE_KIND", site, common_pb2.SiteKind, "recipe.site")),
        end_to_end=pb.EndToEnd(**end_to_end) if end_to_end else None,
        **_given(options),
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
