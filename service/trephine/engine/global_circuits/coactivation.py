"""How often, and how strongly, candidates are active together: the second pass over the training texts.

Sums over tokens of all pairs of candidates, of tokens and candidates, and of candidates and logits, apart for
the two halves of the texts. Memory does not grow with the texts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.global_figures import EdgeWeighting
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.readings import Reading, read_layer
from trephine.engine.global_circuits.texts import HALVES, TextPack, run_pack
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter

_LOGIT_ROWS = 64
"""Rows whose probabilities of the whole vocabulary are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What stands below and above features: tokens, and logits."""

    tokens: tuple[int, ...]
    """Vocabulary ids whose embeddings can be nodes, ascending."""
    logits: tuple[int, ...]
    """Vocabulary ids whose logits can be nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoActivation:
    """Sums over the tokens of each half; a target weighs by its size, or (ERA) by 1 where it is active."""

    pairs: Tensor
    """`(2, readouts, n, n)`, of source times weighted target; rows are sources. Only those from below."""
    targets: Tensor
    """`(2, n)`, of the targets' weights."""
    own: Tensor
    """`(2, n)`, of the targets' weights times their size."""
    tokens: Tensor
    """`(2, readouts, n_tokens, n)`, of the weighted target where the token is."""
    logits: Tensor
    """`(2, n, n_logits)`, of what the source writes times the final norm's scale times the probability."""
    mass: Tensor
    """`(2, n_logits)`, of probabilities."""
    written: Tensor
    """`(2, n)`, of what the source writes."""
    rows: Tensor
    """`(2,)`, tokens."""


def nothing_summed(chosen: Chosen, ends: Ends, device: torch.device) -> CoActivation:
    """Return sums over no token, float32."""
    n, readouts = chosen.count, chosen.space.readouts

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(HALVES, *shape, device=device)

    return CoActivation(
        pairs=zeros(readouts, n, n),
        targets=zeros(n),
        own=zeros(n),
        tokens=zeros(readouts, len(ends.tokens), n),
        logits=zeros(n, len(ends.logits)),
        mass=zeros(len(ends.logits)),
        written=zeros(n),
        rows=zeros(),
    )


def measure_coactivation(
    hosted: HostedModel,
    chosen: Chosen,
    packs: Sequence[TextPack],
    ends: Ends,
    weighting: EdgeWeighting,
    meter: MemoryMeter,
) -> Generator[Progress | None, None, CoActivation]:
    """Run the texts a second time; a pass, a layer's features on it, or a layer's products, a quantum."""
    sums = nothing_summed(chosen, ends, hosted.model.device)
    top = None if ends.logits else chosen.space.layers[-1]
    for number, pack in enumerate(packs):
        yield Progress(stage="co-activation", done=number, total=len(packs))
        operators = run_pack(hosted, pack, top)
        yield from _add_pack(hosted, chosen, pack, operators, ends, weighting, sums)
        meter.sample()
    return sums


def _add_pack(
    hosted: HostedModel,
    chosen: Chosen,
    pack: TextPack,
    operators: FrozenOperators,
    ends: Ends,
    weighting: EdgeWeighting,
    sums: CoActivation,
) -> Generator[None, None, None]:
    half, written = pack.half, torch.zeros(int(pack.read.sum()), chosen.count, device=sums.pairs.device)
    at_token = _token_places(pack, ends)
    for place in range(len(chosen.space.infos)):
        indices, own = chosen.indices(place), chosen.part(place)
        if not indices:
            continue
        reading = chosen_columns(read_layer(hosted, operators, chosen.space, place, pack.read), indices)
        size = reading.activation.abs()
        weight = size if weighting is EdgeWeighting.TWERA else (size > 0).float()
        sums.targets[half, own] += weight.sum(0)
        sums.own[half, own] += (weight * size).sum(0)
        yield None
        for readout, read in enumerate(reading.reads):
            reads = weight * read
            sums.pairs[half, readout, : own.start, own] += written[:, : own.start].T @ reads
            sums.tokens[half, readout, :, own].index_add_(0, at_token[1], reads[at_token[0]])
        written[:, own] = reading.written
        yield None
    sums.written[half] += written.sum(0)
    sums.rows[half] += len(written)
    if ends.logits:
        yield from _add_logits(hosted, pack, operators, ends, written, sums)


def chosen_columns(reading: Reading, indices: list[int]) -> Reading:
    """Return some features of a layer, float32."""
    return Reading(
        activation=reading.activation[:, indices].float(),
        written=reading.written[:, indices].float(),
        reads=tuple((read if read.shape[1] == 1 else read[:, indices]).float() for read in reading.reads),
    )


def _token_places(pack: TextPack, ends: Ends) -> tuple[Tensor, Tensor]:
    """Return the rows that are read whose token can be a node, and the places of their tokens."""
    ids = pack.ids()
    if not ends.tokens:
        return ids.new_zeros(0), ids.new_zeros(0)
    known = torch.tensor(ends.tokens, device=ids.device)
    place = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
    rows = (known[place] == ids).nonzero()[:, 0]
    return rows, place[rows]


def _add_logits(
    hosted: HostedModel,
    pack: TextPack,
    operators: FrozenOperators,
    ends: Ends,
    written: Tensor,
    sums: CoActivation,
) -> Generator[None, None, None]:
    final, scale = operators.final[pack.read], operators.final_norm.scale[pack.read]
    chosen = torch.tensor(ends.logits, device=final.device)
    for rows in torch.arange(len(final), device=final.device).split(_LOGIT_ROWS):
        probability = probabilities(hosted, final[rows])[:, chosen]
        sums.mass[pack.half] += probability.sum(0)
        sums.logits[pack.half] += written[rows].T @ (probability * scale[rows])
        yield None


def probabilities(hosted: HostedModel, final: Tensor) -> Tensor:
    """Return the next token's probabilities `(n, d_vocab)` for what the final norm gives, `(n, d_model)`."""
    architecture = hosted.architecture
    with torch.inference_mode():
        logits = architecture.unembedding(final.to(architecture.W_U.dtype)).float()
    cap = architecture.logit_softcap
    return torch.softmax(logits if cap is None else cap * torch.tanh(logits / cap), -1)
