"""Fitting the controls of a whole set, layer by layer, on text that is not scored."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import OverBudgetError
from trephine.domain.replacements import Dictionary
from trephine.engine.admission.splice import LayerSource
from trephine.engine.admission.stream import UpwardStream
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.positions import Scope
from trephine.engine.replacements.random_dictionaries import LayerControls, control_bytes
from trephine.engine.replacements.residency import default_budget

FIT_TOKENS = 4096
"""Fit tokens at most: at 2,048 features this is seconds per layer, and least squares is well determined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InMemory:
    """An `Opener` over layers that lie in memory."""

    layers: Mapping[int, ReplacementLayer]

    @contextmanager
    def __call__(self, layers: Sequence[int]) -> Iterator[Mapping[int, ReplacementLayer]]:
        """Hand them out."""
        yield {layer: self.layers[layer] for layer in layers}


def fitted_controls(
    hosted: HostedModel,
    given: LayerSource,
    contexts: Sequence[tuple[int, ...]],
    kinds: Sequence[Dictionary],
    *,
    seed: int,
    scope: Scope,
) -> Generator[Progress | None, None, dict[Dictionary, LayerSource]]:
    """Fit controls beside every layer of a set; one context or one layer's solve a quantum.

    Args:
        hosted: The model.
        given: The set, whose L0 on these contexts the controls are given.
        contexts: The text to fit on.
        kinds: Which controls.
        seed: Of their random halves.
        scope: Positions that they are fitted on, the set's own.

    Raises:
        UnsupportedReplacementError: If the text has no such position.
        OverBudgetError: If they do not fit into half of the free memory.
    """
    if not kinds:
        return {}
    _require_room(hosted, given, kinds)
    stream = UpwardStream(hosted, contexts, stage="read for controls")
    counted = scope.counted(contexts)
    fitted: dict[Dictionary, dict[int, ReplacementLayer]] = {kind: {} for kind in kinds}
    for number, info in enumerate(given.infos):
        values = yield from stream.advance([info.site_in, info.sites_out[0]])
        x, y = values[info.site_in][counted], values[info.sites_out[0]][counted]
        with torch.inference_mode(), given.open([info.layer]) as layers:
            l0 = _l0(layers[info.layer], x)
        yield None
        controls = LayerControls(info, x, y, l0=l0, seed=seed)
        for kind in kinds:  # one at a time: each is a quantum of its own
            fitted[kind][info.layer] = controls.fit(kind)
            yield Progress(stage="fit controls", done=number + 1, total=len(given.infos))
    return {kind: _source(layers) for kind, layers in fitted.items()}


def _l0(layer: ReplacementLayer, x: Tensor) -> float:
    counts = [layer.encode(rows).active.sum(-1).double() for rows in x.split(256)]
    return float(torch.cat(counts).mean())


def _source(layers: Mapping[int, ReplacementLayer]) -> LayerSource:
    infos = tuple(layers[layer].info for layer in sorted(layers))
    return LayerSource(infos=infos, open=InMemory(layers=layers))


def _require_room(hosted: HostedModel, given: LayerSource, kinds: Sequence[Dictionary]) -> None:
    needed, free = control_bytes(given.infos, kinds), default_budget(hosted.model.device)
    if needed > free:
        raise OverBudgetError(
            f"{len(kinds)} controls of {len(given.infos)} layers take {needed / 1e6:.0f} MB and "
            f"{free / 1e6:.0f} MB may be used; ask for fewer controls at a time",
            field="controls",
            needed_bytes=needed,
            budget_bytes=free,
        )
