"""The real model with nodes replaced: all but a circuit's, all but a complement's, or a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import Site
from trephine.engine.dataset_circuits.nodes import Features, node_layer
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.dataset_circuits.patches import States
from trephine.engine.dataset_circuits.space import FIRST, NodeSpace
from trephine.engine.hosted import HostedModel
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import opened
from trephine.engine.sites import Touch, touching

Change = Callable[[int, Tensor], Tensor]
"""Given the place of a layer and its live activations `(n_rows, width)`, return the new ones."""


def keeping(space: NodeSpace, pack: Pack, circuit: Tensor, replaced: States) -> Change:
    """Keep the nodes where bool `circuit (count,)` holds, and position 0; replace all others."""
    start = (pack.clean.position < FIRST)[:, None]

    def change(place: int, live: Tensor) -> Tensor:
        keep = space.at_rows(pack, space.part(circuit, place)) | start
        return torch.where(keep, live, replaced[place].activations.to(live.dtype))

    return change


class AblatedModel:
    """Runs packs with changed nodes. Error terms are the current, the clean, or the replacing run's."""

    def __init__(self, hosted: HostedModel, space: NodeSpace, error_term: ErrorTerm) -> None:
        self._hosted, self._space, self._term = hosted, space, error_term

    def metric(
        self,
        pack: Pack,
        change: Change,
        *,
        clean: States = (),
        replaced: States = (),
        places: Sequence[int] | None = None,
    ) -> Tensor:
        """Run a pack with its nodes changed: the metric, float32 or wider, `(n_contexts,)`.

        Args:
            pack: The contexts.
            change: What becomes of activations.
            clean: The clean run's states; needed where error terms are frozen.
            replaced: The replacing states; needed where error terms are dropped.
            places: Layers that are changed; None means all.
        """
        final = self.final(pack, change, clean=clean, replaced=replaced, places=places)
        return pack.metric(final).cpu()

    def final(
        self,
        pack: Pack,
        change: Change,
        *,
        clean: States = (),
        replaced: States = (),
        places: Sequence[int] | None = None,
    ) -> Tensor:
        """As `metric`, but return the final norm's output `(n_rows, d_model)`."""
        with self.changing(pack, change, clean, replaced, places):
            return run_to_final(self._hosted, pack)

    @contextmanager
    def changing(
        self,
        pack: Pack,
        change: Change,
        clean: States = (),
        replaced: States = (),
        places: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Change nodes in forward passes of the pack inside; must not span a quantum."""
        touches: dict[Site, list[Touch]] = {}
        for place in range(len(self._space.layers)) if places is None else places:
            self._add(touches, place, pack, change, clean, replaced)
        merged = {site: _all(each) for site, each in touches.items()}
        with torch.inference_mode(), touching(self._hosted.architecture, merged):
            yield

    def _add(
        self,
        touches: dict[Site, list[Touch]],
        place: int,
        pack: Pack,
        change: Change,
        clean: States,
        replaced: States,
    ) -> None:
        with node_layer(self._hosted, self._space, place) as layer:
            source, outputs = layer.source, layer.outputs
        if not isinstance(layer, Features):

            def overwrite(x: Tensor) -> None:
                x[0] = change(place, x[0])

            touches.setdefault(source, []).append(overwrite)
            return
        errors = {ErrorTerm.FROZEN: clean, ErrorTerm.DROP: replaced}.get(self._term)
        crossing = _Crossing(
            hosted=self._hosted,
            space=self._space,
            place=place,
            start=pack.clean.position < FIRST,
            change=change,
            errors=None if errors is None else errors[place].errors,
        )
        touches.setdefault(source, []).append(crossing.read)
        for site in outputs:
            touches.setdefault(site, []).append(crossing.writer(site))


def run_to_final(hosted: HostedModel, pack: Pack) -> Tensor:
    """Run a pack and return the final norm's output `(n_rows, d_model)`; no logits are needed."""
    kept: list[Tensor] = []
    handle = hosted.architecture.final_norm.module.register_forward_hook(
        lambda _, __, output: kept.append(output[0].clone())
    )
    try:
        with torch.inference_mode():
            hosted.model(
                input_ids=torch.tensor([pack.clean.ids], device=hosted.model.device),
                position_ids=pack.clean.position[None],
                use_cache=False,
                logits_to_keep=1,
            )
    finally:
        handle.remove()
    return kept[0]


class _Crossing:
    """A set's layer in one pass: read at its input, written at its outputs."""

    def __init__(
        self,
        *,
        hosted: HostedModel,
        space: NodeSpace,
        place: int,
        start: Tensor,
        change: Change,
        errors: dict[Site, Tensor] | None,
    ) -> None:
        self._hosted, self._space, self._place = hosted, space, place
        self._start, self._change, self._errors = start, change, errors
        self._pending: dict[Site, Tensor] = {}

    def read(self, x: Tensor) -> None:
        """Encode `(1, n_rows, d_in)` and work out what each output receives."""
        number = self._space.layers[self._place]
        with opened(self._hosted, self._space.replacement, [number]) as resident:
            layer = resident[number]
            wide = x[0].to(torch.promote_types(x.dtype, torch.float32))
            if self._errors is None:
                self._pending = self._differences(layer, wide)
            else:
                self._pending = self._wholes(layer, wide, self._errors)

    def _differences(self, layer: ReplacementLayer, x: Tensor) -> dict[Site, Tensor]:
        code = layer.encode(x)
        new = self._change(self._place, code.activations)
        difference = (new - code.activations).masked_fill(self._start[:, None], 0)
        moved = difference.any(0).nonzero()[:, 0].tolist()
        return {
            site: (difference[:, moved] @ layer.decoders(moved, site).to(difference.dtype)) * code.scale_out
            for site in layer.info.sites_out
        }

    def _wholes(self, layer: ReplacementLayer, x: Tensor, errors: dict[Site, Tensor]) -> dict[Site, Tensor]:
        code = layer.encode(x)
        changed = replace(code, activations=self._change(self._place, code.activations))
        (site,) = layer.info.sites_out
        whole, skipped = layer.decode(changed)[site], layer.skip(x, changed)
        whole = whole if skipped is None else whole + skipped
        return {site: whole + errors[site].to(whole.dtype)}

    def writer(self, site: Site) -> Touch:
        """Return what writes at an output site."""

        def write(y: Tensor) -> None:
            arrived = self._pending.pop(site).to(y.dtype)
            if self._errors is None:
                y[0] += arrived
            else:
                y[0] = torch.where(self._start[:, None], y[0], arrived)

        return write


def _all(touches: Sequence[Touch]) -> Touch:
    def touch(x: Tensor) -> None:
        for each in touches:
            each(x)

    return touch
