"""The real model with nodes replaced: all but a circuit's, all but a complement's, or a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import Site
from trephine.engine.admission.splice import resumed
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.dataset_circuits.nodes import reconstruction
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.dataset_circuits.patches import States
from trephine.engine.dataset_circuits.places import NodeKind, Place
from trephine.engine.dataset_circuits.space import FIRST, NodeSpace
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import Touch, touching
from trephine.engine.replacements.layer import Code, ReplacementLayer
from trephine.engine.replacements.sets import opened

Change = Callable[[int, Tensor], Tensor]
"""Given the place of a layer and its live activations `(n_rows, width)`, return the new ones."""


def keeping(space: NodeSpace, pack: Pack, circuit: Tensor, replaced: States) -> Change:
    """Keep the nodes where bool `circuit (count,)` holds, and position 0; replace all others."""
    start = (pack.clean.position < FIRST)[:, None]
    kept = circuit.to(start.device)

    def change(place: int, live: Tensor) -> Tensor:
        keep = space.kept_at(pack, kept, place) | start
        return torch.where(keep, live, replaced[place].activations.to(live.dtype))

    return change


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a pass starts: what is below the first change is as in the clean run, and is not run again."""

    layer: int
    stream: Tensor
    """`(n_rows, d_model)`, what that block reads in the clean run."""


def start_at(operators: FrozenOperators, layer: int) -> Start:
    """Start a pass at a layer of a clean run."""
    return Start(layer=layer, stream=operators.layers[layer].resid_pre)


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
        start: Start | None = None,
    ) -> Tensor:
        """Run a pack with its nodes changed: the metric, float32 or wider, `(n_contexts,)`.

        Args:
            pack: The contexts.
            change: What becomes of activations.
            clean: The clean run's states; needed where error terms are frozen.
            replaced: The replacing states; needed where error terms are dropped.
            places: Places that are changed; None means all.
            start: At or below the lowest of them; None runs everything.
        """
        final = self.final(pack, change, clean=clean, replaced=replaced, places=places, start=start)
        return pack.metric(final).cpu()

    def final(
        self,
        pack: Pack,
        change: Change,
        *,
        clean: States = (),
        replaced: States = (),
        places: Sequence[int] | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """As `metric`, but return the final norm's output `(n_rows, d_model)`."""
        with self._started(start), self.changing(pack, change, clean, replaced, places):
            return run_to_final(self._hosted, pack)

    def _started(self, start: Start | None) -> AbstractContextManager[None]:
        if start is None or start.layer == 0:
            return nullcontext()
        return resumed(self._hosted.architecture, start.layer, start.stream)

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
        chosen = range(len(self._space.places)) if places is None else places
        for places_of_one in self._grouped(chosen):
            self._add(touches, places_of_one, pack, change, clean, replaced)
        merged = {site: _all(each) for site, each in touches.items()}
        with torch.inference_mode(), touching(self._hosted.architecture, merged):
            yield

    def _grouped(self, places: Sequence[int]) -> list[list[int]]:
        """Put a layer's features and its error terms together: they change one output."""
        groups: dict[tuple[str, int], list[int]] = {}
        for place in places:
            described = self._space.places[place]
            groups.setdefault((described.set_name, described.layer), []).append(place)
        return list(groups.values())

    def _add(
        self,
        touches: dict[Site, list[Touch]],
        places: Sequence[int],
        pack: Pack,
        change: Change,
        clean: States,
        replaced: States,
    ) -> None:
        place = places[0]
        described = self._space.places[place]
        if not described.is_of_set:

            def overwrite(x: Tensor) -> None:
                x[0] = change(place, x[0])

            touches.setdefault(described.source, []).append(overwrite)
            return
        errors = {ErrorTerm.FROZEN: clean, ErrorTerm.DROP: replaced}.get(self._term)
        by_kind = {self._space.places[each].kind: each for each in places}
        crossing = _Crossing(
            hosted=self._hosted,
            place=described,
            features=by_kind.get(NodeKind.FEATURE),
            errors=by_kind.get(NodeKind.ERROR),
            start=pack.clean.position < FIRST,
            change=change,
            imposed=None if errors is None else errors[place].errors,
        )
        touches.setdefault(described.source, []).append(crossing.read)
        for site in described.outputs:
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
        place: Place,
        features: int | None,
        errors: int | None,
        start: Tensor,
        change: Change,
        imposed: dict[Site, Tensor] | None,
    ) -> None:
        """Change features, error terms (by the numbers of their places), or both.

        Args:
            hosted: The model.
            place: Features or error terms of the layer.
            features: Number of the features' place; None leaves them alone.
            errors: Number of the error terms' place; None leaves them alone.
            start: bool `(n_rows,)`, rows that are left alone.
            change: What becomes of activations.
            imposed: Error terms of another run, for all rows; None leaves them live.
        """
        self._hosted, self._place, self._features, self._errors = hosted, place, features, errors
        self._start, self._change, self._imposed = start[:, None], change, imposed
        self._pending: dict[Site, Tensor] = {}
        self._reconstructed: Tensor | None = None

    def read(self, x: Tensor) -> None:
        """Encode `(1, n_rows, d_in)` and work out what each output receives."""
        with opened(self._hosted, self._place.set_name, [self._place.layer]) as resident:
            layer = resident[self._place.layer]
            wide = x[0].to(torch.promote_types(x.dtype, torch.float32))
            code = layer.encode(wide)
            new = (
                code.activations if self._features is None else self._change(self._features, code.activations)
            )
            if self._imposed is not None:
                self._pending = _wholes(layer, wide, replace(code, activations=new), self._imposed)
                return
            self._pending = self._differences(layer, code, new)
            if self._errors is not None:
                self._reconstructed = reconstruction(layer, wide, code)

    def _differences(self, layer: ReplacementLayer, code: Code, new: Tensor) -> dict[Site, Tensor]:
        difference = (new - code.activations).masked_fill(self._start, 0)
        moved = difference.any(0).nonzero()[:, 0].tolist()
        return {
            site: (difference[:, moved] @ layer.decoders(moved, site).to(difference.dtype)) * code.scale_out
            for site in layer.info.sites_out
        }

    def writer(self, site: Site) -> Touch:
        """Return what writes at an output site."""

        def write(y: Tensor) -> None:
            arrived = self._pending.pop(site)
            if self._imposed is not None:
                y[0] = torch.where(self._start, y[0], arrived.to(y.dtype))
                return
            if self._errors is not None and self._reconstructed is not None:
                live = y[0].to(self._reconstructed.dtype) - self._reconstructed
                arrived = arrived + (self._change(self._errors, live) - live).masked_fill(self._start, 0)
            y[0] += arrived.to(y.dtype)

        return write


def _wholes(layer: ReplacementLayer, x: Tensor, code: Code, errors: dict[Site, Tensor]) -> dict[Site, Tensor]:
    (site,) = layer.info.sites_out
    whole = reconstruction(layer, x, code)
    return {site: whole + errors[site].to(whole.dtype)}


def _all(touches: Sequence[Touch]) -> Touch:
    def touch(x: Tensor) -> None:
        for each in touches:
            each(x)

    return touch
