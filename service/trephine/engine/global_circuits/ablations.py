"""What targets of edges lose when the sources are ablated on texts that the edges were not found on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.global_circuits import ABLATED_TOKENS
from trephine.domain.global_figures import EdgeWeighting
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import clean_value
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.readings import read_layer
from trephine.engine.global_circuits.texts import TextPack, run_pack
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.sites import Touch, touching
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Per edge, over held-out tokens; float64, NaN where there is no such token."""

    source: Tensor
    """int64 `(n_edges,)`, candidates."""
    target: Tensor
    activation: Tensor
    """`(n_edges,)`, the source's mean, as it is written, where it is active."""
    size: Tensor
    """`(n_edges,)`, the mean of its absolute value there."""
    where_source: Tensor
    """`(n_edges,)`, mean loss of the target there."""
    where_target: Tensor
    """`(n_edges,)`, mean loss over all tokens, weighted by the target."""
    tokens: int
    """That sources were ablated on."""


def measure_losses(
    hosted: HostedModel,
    chosen: Chosen,
    source: Tensor,
    target: Tensor,
    packs: Sequence[TextPack],
    weighting: EdgeWeighting,
    meter: MemoryMeter,
) -> Generator[Progress | None, None, Losses]:
    """Ablate every source on every pack, all its tokens together; one pass a quantum.

    Args:
        hosted: The model.
        chosen: The candidates.
        source: int64 `(n_edges,)`, places among them.
        target: int64 `(n_edges,)`.
        packs: Held-out texts; as many, from the first, as have `ABLATED_TOKENS` tokens.
        weighting: How targets weigh tokens.
        meter: Of memory.
    """
    used = _first_packs(packs)
    sums = torch.zeros(6, len(source), dtype=torch.float64)
    by_source = [(int(node), (source == node).nonzero()[:, 0]) for node in source.unique()]
    top = int(chosen.layer[target].max())
    for number, pack in enumerate(used):
        operators = run_pack(hosted, pack, top)
        clean = {
            int(node): _target_of(hosted, chosen, int(node), operators, pack) for node in target.unique()
        }
        yield None
        for done, (node, edges) in enumerate(by_source):
            yield Progress(
                stage="held-out ablations",
                done=number * len(by_source) + done,
                total=len(used) * len(by_source),
            )
            written = _column(hosted, chosen, node, operators, pack)
            with ablated(hosted, chosen, node, operators, pack):
                without = run_pack(hosted, pack, int(chosen.layer[target[edges]].max()))
            for edge in edges.tolist():
                reached = int(target[edge])
                still = _target_of(hosted, chosen, reached, without, pack).value
                loss = clean[reached].value - still
                sums[:, edge] += _summed(written, loss, clean[reached].size, weighting)
        meter.sample()
    active, activation, size, at_source, weight, at_target = sums
    return Losses(
        source=source,
        target=target,
        activation=activation / active,
        size=size / active,
        where_source=at_source / active,
        where_target=at_target / weight,
        tokens=sum(int(pack.read.sum()) for pack in used),
    )


def _first_packs(packs: Sequence[TextPack]) -> list[TextPack]:
    used: list[TextPack] = []
    tokens = 0
    for pack in packs:
        if used and tokens >= ABLATED_TOKENS:
            break
        used.append(pack)
        tokens += int(pack.read.sum())
    return used


def _summed(written: Tensor, loss: Tensor, size: Tensor, weighting: EdgeWeighting) -> Tensor:
    here = (written != 0).double()
    weight = size if weighting is EdgeWeighting.TWERA else (size > 0).double()
    total = weight.sum() if weighting is EdgeWeighting.TWERA else torch.tensor(float(len(weight)))
    source = (here.sum(), written.sum(), written.abs().sum(), (here * loss).sum())
    parts = (*source, total.to(loss), (weight * loss).sum())
    return torch.stack(parts).cpu()


@dataclass(frozen=True, slots=True)
class _Target:
    """A target on the rows that are read; float64."""

    value: Tensor
    """Pre-activation, or a neuron's activation."""
    size: Tensor
    """Absolute activation."""


def _target_of(
    hosted: HostedModel, chosen: Chosen, node: int, operators: FrozenOperators, pack: TextPack
) -> _Target:
    info, index = _address(chosen, node)
    layer = operators.layers[info.layer]
    if info.kind is LayerKind.NEURONS:
        value = layer.activation[pack.read, index].double()
        return _Target(value, value.abs())
    x = clean_value(operators, info.site_in)[pack.read]
    with opened(hosted, chosen.space.name, [info.layer]) as resident, torch.inference_mode():
        code = resident[info.layer].encode(x)
    return _Target(code.pre[:, index].double(), code.activations[:, index].abs().double())


def _column(
    hosted: HostedModel, chosen: Chosen, node: int, operators: FrozenOperators, pack: TextPack
) -> Tensor:
    place, index = chosen.space.split(chosen.features[node : node + 1])
    reading = read_layer(hosted, operators, chosen.space, int(place), pack.read)
    return reading.written[:, int(index)].double()


def ablated(
    hosted: HostedModel, chosen: Chosen, node: int, operators: FrozenOperators, pack: TextPack
) -> AbstractContextManager[None]:
    """Take a feature away in the passes inside, on all tokens that are read.

    Of a set what it writes is subtracted at every site that it writes, so that the error term stays live;
    nothing below reads it, so that the clean run's activation is its own. A neuron is set to zero.
    """
    info, index = _address(chosen, node)
    if info.kind is LayerKind.NEURONS:
        neurons = Site(kind=SiteKind.NEURONS, layer=info.layer)
        return touching(hosted.architecture, {neurons: _zeroing(pack.read, index)})
    with opened(hosted, chosen.space.name, [info.layer]) as resident, torch.inference_mode():
        layer = resident[info.layer]
        code = layer.encode(clean_value(operators, info.site_in))
        amount = code.activations[:, [index]] * code.scale_out * pack.read[:, None]
        deltas = {site: amount * layer.decoders([index], site) for site in info.sites_out}
    return touching(hosted.architecture, {site: _subtracting(delta) for site, delta in deltas.items()})


def _zeroing(read: Tensor, index: int) -> Touch:
    def touch(x: Tensor) -> None:
        x[0, read, index] = 0

    return touch


def _subtracting(delta: Tensor) -> Touch:
    def touch(x: Tensor) -> None:
        x[0] -= delta.to(x.dtype)

    return touch


def _address(chosen: Chosen, node: int) -> tuple[ReplacementLayerInfo, int]:
    """Return the layer of a candidate, and its index there."""
    place, index = chosen.space.split(chosen.features[node : node + 1])
    return chosen.space.infos[int(place)], int(index)
