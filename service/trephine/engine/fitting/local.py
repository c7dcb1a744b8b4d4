"""The local phase: every layer learns its own site, all layers of a group from one pass over the text."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.fitting import FitRecipe
from trephine.domain.replacements import LayerKind
from trephine.engine.fitting.activations import (
    ActivationStream,
    Plan,
    bytes_per_token,
    chunk_rows,
    plan,
    read_sites,
)
from trephine.engine.fitting.contexts import Contexts
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.joint import JointTrainee
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.start import places, started
from trephine.engine.fitting.trainee import Side, Trainee
from trephine.engine.models.hosted import HostedModel

SAMPLE_TOKENS = 8192
"""Positions that units, means and the warm start are taken from."""


def local_source(
    hosted: HostedModel, recipe: FitRecipe, layers: Sequence[int], contexts: Contexts
) -> ActivationStream:
    """Make the stream of activations that a group of layers learns from."""
    pairs = places(recipe, layers)
    sites = tuple(dict.fromkeys(site for site_in, sites_out in pairs for site in (site_in, *sites_out)))
    return ActivationStream(
        hosted=hosted,
        rows=contexts.train,
        sites=sites,
        plan=plan(
            tokens=recipe.tokens,
            batch_tokens=recipe.batch_tokens,
            positions=contexts.positions,
            bytes_per_token=bytes_per_token(hosted, sites),
        ),
        seed=recipe.seed,
    )


def starting_dictionaries(
    hosted: HostedModel, recipe: FitRecipe, layers: Sequence[int], source: ActivationStream
) -> list[Dictionary]:
    """Make what training starts from; the same request makes the same."""
    count = max(1, min(len(source.rows), SAMPLE_TOKENS // source.plan.positions))
    rows = source.rows[chunk_rows(len(source.rows), 0, count, recipe.seed)]
    return started(hosted, recipe, layers, read_sites(hosted, rows, source.sites))


def local_trainee(dictionaries: Sequence[Dictionary], recipe: FitRecipe, cut: Plan) -> Trainee:
    """SAELens' trainer for SAEs and transcoders, layer by layer; our own for a cross-layer transcoder."""
    if recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER:
        return JointTrainee(
            dictionaries,
            k=recipe.k,
            rate=Rate(peak=recipe.lr, steps=cut.steps),
            dead_after_tokens=recipe.dead_after_tokens,
        )
    # Takes seconds, and a fit of a cross-layer transcoder does not need it.
    from trephine.engine.fitting.saelens import SaeLensTrainee

    return Side([SaeLensTrainee(dictionary, recipe, cut) for dictionary in dictionaries])
