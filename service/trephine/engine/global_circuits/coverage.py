"""How much of what features below add to the circuit's features on held-out tokens its edges carry."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.findings import Figure
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.measured import MeasuredEdges
from trephine.engine.global_circuits.readings import RunningWrites, chosen_encoders, read_layer
from trephine.engine.global_circuits.texts import TextPack, run_pack
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened
from trephine.engine.verification.statistics import Bootstrap

FEWEST = 8
_PACKS = 2
"""Of held-out texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    """The circuit's features that edges lead into."""

    chosen: Chosen
    encoders: Tensor
    """`(n, d_model)`, folded."""
    inside: Tensor
    """bool `(n_space, n)`, where an edge of the circuit leads from a feature of the space to a target."""
    carried: Tensor
    """float64 `(n,)`, absolute direct effects through edges of the circuit."""
    entering: Tensor
    """float64 `(n,)`, absolute direct effects of all features below."""


def measure_coverage(
    hosted: HostedModel,
    edges: MeasuredEdges,
    source: Tensor,
    target: Tensor,
    packs: Sequence[TextPack],
    bootstrap: Bootstrap,
) -> Generator[Progress | None, None, Figure | None]:
    """Compare, feature by feature, over tokens on which it is active; None of gated neurons, and of a few.

    Of gated neurons a direct effect is a sum over two read-outs, whose sizes do not add up.

    Args:
        hosted: The model.
        edges: All that were measured.
        source: int64 `(n_edges,)`, the circuit's edges, places among the candidates.
        target: int64 `(n_edges,)`.
        packs: Held-out texts; the first are used.
        bootstrap: Of the interval.
    """
    space, reached = edges.chosen.space, target.unique()
    if space.readouts > 1 or len(reached) < FEWEST:
        return None
    targets = _targets(hosted, edges, source, target, reached)
    top = int(targets.chosen.layer.max())
    for number, pack in enumerate(packs[:_PACKS]):
        yield Progress(stage="coverage", done=number, total=min(_PACKS, len(packs)))
        operators = run_pack(hosted, pack, top)
        weights = torch.zeros(int(pack.read.sum()), targets.chosen.count, device=targets.encoders.device)
        for place in reversed(range(len(space.infos))):  # what reads above is known first
            if space.layers[place] > top:
                continue
            yield None
            reading = read_layer(hosted, operators, space, place, pack.read)
            own, indices = targets.chosen.part(place), targets.chosen.indices(place)
            active = (reading.activation[:, indices] != 0).float()
            weights[:, own] = active * _of(reading.reads[0], indices).abs()
            yield None
            _add(hosted, targets, place, reading.written.abs(), weights)
    known = targets.entering > 0
    if int(known.sum()) < FEWEST:
        return None
    return bootstrap.mean("coverage", targets.carried[known] / targets.entering[known])


def _of(read: Tensor, indices: list[int]) -> Tensor:
    return read if read.shape[1] == 1 else read[:, indices]


def _targets(
    hosted: HostedModel, edges: MeasuredEdges, source: Tensor, target: Tensor, reached: Tensor
) -> _Targets:
    space, features = edges.chosen.space, edges.chosen.features
    chosen = Chosen(space=space, features=features[reached])
    inside = torch.zeros(space.count, len(reached), dtype=torch.bool)
    inside[features[source], torch.searchsorted(reached, target)] = True
    encoders = chosen_encoders(hosted, chosen)[0]
    nothing = torch.zeros(len(reached), dtype=torch.float64)
    return _Targets(
        chosen=chosen, encoders=encoders, inside=inside, carried=nothing, entering=nothing.clone()
    )


def _add(hosted: HostedModel, targets: _Targets, place: int, sizes: Tensor, weights: Tensor) -> None:
    """Add the direct effects of a layer's features, whose written sizes are `(n_read, d_sae)`."""
    space = targets.chosen.space
    info, first = space.infos[place], int(space.offsets[place])
    inside = targets.inside[first : first + info.d_sae].to(sizes.device)
    with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
        running = RunningWrites(resident[info.layer], list(range(info.d_sae)))
        for block in range(info.layer, int(targets.chosen.layer.max())):
            written = running.after(block)
            if block + 1 not in space.layers:
                continue
            own = targets.chosen.part(space.layers.index(block + 1))
            if own.start == own.stop:
                continue
            virtual = (written @ targets.encoders[own].T).abs()  # (d_sae, n_own)
            for into, kept in ((targets.entering, virtual), (targets.carried, virtual * inside[:, own])):
                into[own] += (sizes @ kept * weights[:, own]).sum(0).double().cpu()
