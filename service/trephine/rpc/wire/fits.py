"""Fits: recipes, reports, predictions."""

from __future__ import annotations

from trephine.app.jobs.requests import FitSetRequest
from trephine.app.sets.fits import StoredFit
from trephine.domain import fitting as domain
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import SiteKind
from trephine.rpc.wire.artifacts import digest_from_wire
from trephine.rpc.wire.common import SITE_KIND_NUMBERS, SITE_KINDS, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, qualified, required, resource_id, within
from trephine.rpc.wire.replacements import KIND_NUMBERS, KINDS
from trephine.v1 import common_pb2
from trephine.v1 import replacement_service_pb2 as pb

_DEFAULT = domain.FitRecipe()
_KINDS = {pb.LAYER_KIND_UNSPECIFIED: LayerKind.TRANSCODER, **KINDS}
_SITES = {common_pb2.SITE_KIND_UNSPECIFIED: SiteKind.MLP_IN, **SITE_KINDS}
_COUNTS = ("d_sae", "k", "tokens", "context_tokens", "batch_tokens", "dead_after_tokens", "seed")


def fit_from_wire(request: pb.FitReplacementSetRequest) -> FitSetRequest:
    """Read a request for a fit, with the defaults that the contract states. A prediction needs no name.

    Raises:
        InvalidRequestError: Naming the field.
    """
    corpus = request.corpus
    if corpus.startswith("artifacts/"):
        corpus = f"artifacts/{digest_from_wire(corpus, 'corpus')}"
    return FitSetRequest(
        model=resource_id(request.model, "models", "model"),
        set_id=request.set_id if request.validate_only else required(request.set_id, "set_id"),
        recipe=recipe_from_wire(request.recipe),
        corpus=corpus,
        corpus_name=request.corpus_name or ("corpus" if corpus else "own samples"),
    )


def recipe_from_wire(recipe: pb.FitRecipe) -> domain.FitRecipe:
    """Read a recipe; what is unset is the domain's default.

    Raises:
        InvalidRequestError: Naming the field.
    """
    with within("recipe"):
        for index, layer in enumerate(recipe.layers):
            at_least(layer, 0, f"layers[{index}]")
        kind, site = one_of(recipe.kind, _KINDS, "kind"), one_of(recipe.site, _SITES, "site")
        lr = finite(recipe.lr, "lr") if recipe.HasField("lr") else _DEFAULT.lr
        end_to_end = _end_to_end_from_wire(recipe.end_to_end)
    counts = {
        name: getattr(recipe, name) if recipe.HasField(name) else getattr(_DEFAULT, name)  # type: ignore[arg-type]
        for name in _COUNTS
    }
    return domain.FitRecipe(
        kind=kind,
        site=site,
        layers=tuple(dict.fromkeys(recipe.layers)),
        lr=lr,
        warm_start=recipe.warm_start if recipe.HasField("warm_start") else _DEFAULT.warm_start,
        end_to_end=end_to_end,
        **counts,
    )


def recipe_to_wire(recipe: domain.FitRecipe) -> pb.FitRecipe:
    """Write a recipe, complete."""
    return pb.FitRecipe(
        kind=KIND_NUMBERS[recipe.kind],
        site=SITE_KIND_NUMBERS[recipe.site],
        layers=recipe.layers,
        lr=recipe.lr,
        warm_start=recipe.warm_start,
        end_to_end=pb.EndToEnd(
            tokens=recipe.end_to_end.tokens,
            lr=recipe.end_to_end.lr,
            local_control=recipe.end_to_end.local_control,
        ),
        **{name: getattr(recipe, name) for name in _COUNTS},
    )


def fit_to_wire(stored: StoredFit) -> pb.FitReport:
    """Write a finished fit."""
    report = stored.report
    return pb.FitReport(
        name=qualified("fits", stored.name),
        replacement_set=qualified("replacements", stored.set_id),
        recipe=recipe_to_wire(report.recipe),
        layers=[
            pb.FittedLayer(layer=one.layer, fvu=one.fvu, l0=one.l0, dead_share=one.dead_share)
            for one in report.layers
        ],
        curve=[_point_to_wire(point) for point in report.curve],
        gap=None if report.gap is None else _gap_to_wire(report.gap),
        corpus=clean(report.corpus),
        tokens=report.tokens,
        version=version_to_wire(report.model, report.weight_hash),
        seconds=report.seconds,
        peak_bytes=report.peak_bytes,
        resumed=report.resumed,
        create_time=clean(stored.create_time),
    )


def predicted_fit_to_wire(request: FitSetRequest, predicted: domain.PredictedFit) -> pb.FitReport:
    """Write what a fit would take."""
    return pb.FitReport(
        replacement_set=qualified("replacements", request.set_id),
        recipe=recipe_to_wire(request.recipe),
        corpus=clean(request.corpus_name),
        predicted=pb.PredictedFit(
            seconds=predicted.seconds, memory_bytes=predicted.memory_bytes, disk_bytes=predicted.disk_bytes
        ),
    )


def _end_to_end_from_wire(message: pb.EndToEnd) -> domain.EndToEnd:
    default = domain.EndToEnd(tokens=0)
    with within("end_to_end"):
        return domain.EndToEnd(
            tokens=at_least(message.tokens, 0, "tokens"),
            lr=finite(message.lr, "lr") if message.HasField("lr") else default.lr,
            local_control=message.local_control if message.HasField("local_control") else True,
        )


def _point_to_wire(point: domain.FitPoint) -> pb.FitPoint:
    return pb.FitPoint(
        phase=clean(point.phase),
        layer=point.layer,
        tokens=point.tokens,
        fvu=point.fvu,
        l0=point.l0,
        dead_share=point.dead_share,
        kl=point.kl,
    )


def _gap_to_wire(gap: domain.GapClosed) -> pb.GapClosed:
    return pb.GapClosed(
        ce_plain=gap.ce_plain,
        ce_local=gap.ce_local,
        ce_end_to_end=gap.ce_end_to_end,
        ce_local_control=gap.ce_local_control,
        closed=gap.closed,
        l0_change=gap.l0_change,
        seconds_end_to_end=gap.seconds_end_to_end,
        seconds_local_control=gap.seconds_local_control,
    )
