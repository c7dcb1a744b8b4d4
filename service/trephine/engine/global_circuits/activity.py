"""How active every feature is over the training texts: the first of two passes over them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.engine.global_circuits.dictionaries import FeatureSpace
from trephine.engine.global_circuits.readings import Reading, read_layer
from trephine.engine.global_circuits.texts import TextPack, run_pack
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.replacements.sets import opened

_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Of every feature of a space, over tokens that are read; float64 on the CPU."""

    tokens: int
    active: Tensor
    """`(n_features,)`, tokens that it is active on."""
    mean_size: Tensor
    """`(n_features,)`, mean absolute activation."""
    mean_written: Tensor
    """`(n_features,)`, mean of activation times what outputs are multiplied by."""
    rms: Tensor
    """`(n_features,)`, root mean square activation."""
    rms_written: Tensor
    """`(n_features,)`."""
    reads: Tensor
    """`(readouts, n_features)`, mean of what pre-activations gain by one unit along the folded encoder: for
    features of sets the mean scale of the norm."""

    @property
    def where_active(self) -> Tensor:
        """`(n_features,)`, mean absolute activation on tokens that it is active on."""
        return self.mean_size * self.tokens / self.active.clamp_min(1)


class _Sums:
    """Running sums over tokens."""

    def __init__(self, space: FeatureSpace) -> None:
        self.tokens = 0
        self._space = space
        self._columns = torch.zeros(5 + space.readouts, space.count, dtype=torch.float64)

    def add(self, place: int, reading: Reading) -> None:
        """Add a layer's values on a pack."""
        a, w = reading.activation.double(), reading.written.double()
        columns = [(a != 0).double().sum(0), a.abs().sum(0), w.sum(0), a.square().sum(0), w.square().sum(0)]
        columns += [read.double().sum(0).expand(a.shape[1]) for read in reading.reads]
        self._space.part(self._columns, place).add_(torch.stack(columns).cpu())

    def done(self) -> Activity:
        """Divide by the tokens."""
        active, size, written, square, square_written, *reads = self._columns
        n = max(1, self.tokens)
        return Activity(
            tokens=self.tokens,
            active=active,
            mean_size=size / n,
            mean_written=written / n,
            rms=(square / n).sqrt(),
            rms_written=(square_written / n).sqrt(),
            reads=torch.stack(reads) / n,
        )


def measure_activity(
    hosted: HostedModel, space: FeatureSpace, packs: Sequence[TextPack], meter: MemoryMeter
) -> Generator[Progress | None, None, Activity]:
    """Run the texts once; a pass, or a layer's features on it, a quantum."""
    sums, top = _Sums(space), space.layers[-1]
    for number, pack in enumerate(packs):
        yield Progress(stage="activity", done=number, total=len(packs))
        operators = run_pack(hosted, pack, top)
        sums.tokens += int(pack.read.sum())
        for place in range(len(space.infos)):
            yield None
            sums.add(place, read_layer(hosted, operators, space, place, pack.read))
        meter.sample()
    return sums.done()


def strengths(hosted: HostedModel, space: FeatureSpace, activity: Activity) -> Generator[None, None, Tensor]:
    """Return the root mean square norm of what each feature writes, `(n_features,)`; a layer a quantum."""
    norms = []
    for info in space.infos:
        with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
            norms.append(resident[info.layer].decoder_norms().double().cpu())
        yield None
    return activity.rms_written * torch.cat(norms)


def reach_of(activity: Activity) -> tuple[Tensor, Tensor]:
    """Return what bounds an edge's share of its target beside the virtual weight, by source and by target.

    By Cauchy and Schwarz E[b a] is at most rms(a) rms(b), so that TWERA over the target's weighted mean
    E[b^2] / E[b] is at most |V| rms(a) / rms(b).
    """
    return activity.rms_written, 1 / activity.rms.clamp_min(_TINY)
