"""The answer of TraceAttention, out of what was gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.attention import (
    AttentionTrace,
    KeyWeight,
    KindTerm,
    PairTerm,
    SideTerm,
    Source,
    SourceKind,
    TraceAttention,
)
from trephine.domain.error_sites import ERROR_SITES, error_number
from trephine.domain.sites import NEURONS, SiteKind
from trephine.domain.tokens import Token
from trephine.engine.attribution.attention_scores import HeadProjection
from trephine.engine.attribution.expansion import check_sums
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import degraded_caveats
from trephine.engine.tracing.softmax_paths import capped, tilted, weights_of
from trephine.engine.tracing.tracing_sums import KINDS, Entry, Ranking, Sums


def trace_of(
    hosted: HostedModel,
    operators: FrozenOperators,
    command: TraceAttention,
    tokens: tuple[Token, ...],
    entry: Entry,
    sums: Sums,
) -> AttentionTrace:
    """Put an entry's tables together; its terms are held to the model's own score."""
    column, path = entry.column(entry.key), entry.path
    kinds = _kind_terms(entry, sums)
    weights = weights_of(entry.row.double(), entry.scores.softcap)
    naming = _Naming(hosted, command.sets, tokens)
    trace = AttentionTrace(
        tokens=tokens,
        layer=entry.layer,
        head=entry.head,
        query=entry.query,
        key=entry.key,
        runner_up=entry.runner_up,
        softcap=entry.scores.softcap,
        score=float(entry.row[column]),
        terms_sum=sum(term.score for term in kinds),
        weight=float(weights[column]),
        even=1 / len(entry.visible),
        change=float(path.exact),
        shares_sum=float(path.total),
        residual=float(path.residual),
        nodes=path.nodes,
        keys=tuple(
            KeyWeight(position=position, score=score, weight=weight, sensitivity=worth)
            for position, score, weight, worth in zip(
                entry.visible.tolist(),
                entry.row.tolist(),
                weights.tolist(),
                path.worth.tolist(),
                strict=True,
            )
        ),
        query_side=_query_terms(entry, sums.query_side, naming),
        key_side=_key_terms(entry, sums.key_side, naming),
        pairs=_pairs(entry, sums, naming, command.top),
        kinds=kinds,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        replacement=command.replacement,
        beside=command.beside,
        caveats=(*degraded_caveats(hosted, command.sets), *_caveats(command, entry)),
    )
    scale = torch.tensor([sum(abs(term.score) for term in kinds)])
    check_sums(operators, torch.tensor([trace.terms_sum]), torch.tensor([trace.score]), scale)
    return trace


@dataclass(frozen=True, slots=True)
class _Naming:
    """Turns rows of a ranking into sources with labels."""

    hosted: HostedModel
    sets: Sequence[str]
    tokens: Sequence[Token]

    def sources(self, ranking: Ranking) -> list[Source]:
        """Name every row."""
        columns = (ranking.kind, ranking.position, ranking.layer, ranking.index, ranking.owner)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [self._source(KINDS[kind], *row) for kind, *row in rows]

    def _source(self, kind: SourceKind, position: int, layer: int, index: int, owner: int) -> Source:
        token, name = self.tokens[position], self.sets[owner] if owner >= 0 else ""
        noun = "neuron" if name == NEURONS else "feature"
        of_set = f"{name}:" if len(self.sets) > 1 and name != NEURONS else ""
        place = _place(index) if kind is SourceKind.ERROR else ""
        labels = {
            SourceKind.FEATURE: f"{noun} {of_set}{layer}:{index}",
            SourceKind.ERROR: f"error of {place} {layer}",
            SourceKind.HEAD: f"head {layer}.{index}",
            SourceKind.SKIP: f"skip path of layer {layer}",
            SourceKind.TOKEN: f"embedding of {token.display!r}",
            SourceKind.BIAS: "constants",
        }
        if kind is SourceKind.TOKEN:
            index = token.id
        return Source(
            kind=kind,
            position=position,
            layer=layer,
            index=index,
            label=f"{labels[kind]} @{position}",
            replacement=name,
        )


def _place(index: int) -> str:
    """Say where an error is: the MLP's, of which every layer has one, by the layer alone."""
    return "layer" if index == error_number(SiteKind.MLP_OUT) else ERROR_SITES[-1 - index].value


def _query_terms(entry: Entry, ranking: Ranking, naming: _Naming) -> tuple[SideTerm, ...]:
    column = entry.column(entry.key)
    rival = None if entry.runner_up is None else entry.column(entry.runner_up)
    alone = _alone(entry, -ranking.scores.double())
    return tuple(
        SideTerm(
            source=source,
            score=scores[column],
            log_odds=scores[column] - (0.0 if rival is None else scores[rival]),
            share=share,
            alone=fall,
        )
        for source, scores, share, fall in zip(
            naming.sources(ranking), ranking.scores.tolist(), ranking.value.tolist(), alone, strict=True
        )
    )


def _key_terms(entry: Entry, ranking: Ranking, naming: _Naming) -> tuple[SideTerm, ...]:
    delta = torch.zeros(len(ranking.value), len(entry.visible), dtype=torch.float64)
    columns = ranking.position - int(entry.visible[0])
    delta[torch.arange(len(delta)), columns] = -ranking.scores[:, 0].double()
    signs = {entry.key: 1.0, entry.runner_up: -1.0}
    return tuple(
        SideTerm(
            source=source,
            score=score,
            log_odds=signs.get(source.position, 0.0) * score,
            share=share,
            alone=fall,
        )
        for source, score, share, fall in zip(
            naming.sources(ranking),
            ranking.scores[:, 0].tolist(),
            ranking.value.tolist(),
            _alone(entry, delta),
            strict=True,
        )
    )


def _alone(entry: Entry, delta: Tensor) -> list[float]:
    """How much the traced weight falls under each shift of the scores `(n, n_keys)`; exact."""
    shift = delta.to(entry.row.device)
    falls: list[float] = (-tilted(entry.row.double(), shift, entry.measured, entry.scores.softcap)).tolist()
    return falls


def _pairs(entry: Entry, sums: Sums, naming: _Naming, top: int) -> tuple[PairTerm, ...]:
    """Multiply the strongest of both sides out; the largest absolute scores are shown."""
    queries = _vectors(entry.scores.queries, sums.query_pairs, entry.query)
    keys = _vectors(entry.scores.keys, sums.key_pairs, entry.key)
    scores = entry.scores.scaling * queries @ keys.T  # (n_query, n_key)
    worth = float(entry.path.worth[entry.column(entry.key)])
    best = scores.abs().flatten().topk(min(top, scores.numel())).indices.tolist()
    of_query, of_key = naming.sources(sums.query_pairs), naming.sources(sums.key_pairs)
    flat = scores.flatten().tolist()
    return tuple(
        PairTerm(
            query=of_query[place // len(of_key)],
            key=of_key[place % len(of_key)],
            score=flat[place],
            share=flat[place] * worth,
        )
        for place in best
    )


def _vectors(projection: HeadProjection, ranking: Ranking, position: int) -> Tensor:
    """Query or key vectors `(n, d_head)` of ranked summands; the constants' hold the projection's own."""
    if ranking.vectors is None:
        raise ValueError("this ranking keeps no vectors")
    bias = ranking.kind == KINDS.index(SourceKind.BIAS)
    at = torch.full((len(ranking.value),), position, device=ranking.vectors.device)
    found = projection.project(ranking.vectors, at)
    return found + bias.to(found.device, found.dtype)[:, None] * projection.constant(at)


def _kind_terms(entry: Entry, sums: Sums) -> tuple[KindTerm, ...]:
    """Multiply sums by kind out: exact, whatever is shown of single sources."""
    scores, vectors = entry.scores, []
    for projection, kinds, position in (
        (scores.queries, sums.query_kinds, entry.query),
        (scores.keys, sums.key_kinds, entry.key),
    ):
        at = torch.full((len(kinds),), position, device=kinds.device)
        found = projection.project(kinds, at)
        found[KINDS.index(SourceKind.BIAS)] += projection.constant(at[:1])[0]
        vectors.append(found.double())
    table = scores.scaling * vectors[0] @ vectors[1].T
    worth = float(entry.path.worth[entry.column(entry.key)])
    return tuple(
        KindTerm(query=query, key=key, score=value, share=value * worth)
        for query, row in zip(KINDS, table.tolist(), strict=True)
        for key, value in zip(KINDS, row, strict=True)
        if value
    )


def _caveats(command: TraceAttention, entry: Entry) -> tuple[str, ...]:
    caveats = [
        "Scores are taken apart with norm scales frozen (law 5); heads below are sources of their own, as "
        "their outputs are no features.",
        "Shares deal out the weight's distance from an even spread over all visible keys; beside them stands "
        "what the weight loses without one source, all else as it is. Both go through the exact softmax.",
    ]
    if 0 in entry.visible.tolist():
        caveats.append(
            "Position 0 is an attention sink: much of what a head sees there is how it attends to nothing."
        )
    if entry.scores.softcap is not None:
        cap, score = entry.scores.softcap, entry.row[entry.column(entry.key)]
        after = float(capped(score.double(), cap))
        caveats.append(
            f"Scores are before the soft cap of {cap:g}: it turns {float(score):.3f} into {after:.3f}."
        )
    if command.replacement != NEURONS:
        caveats.append(
            "Sets have no features at position 0, nor have neurons beside them; what is written there at "
            "their sites is error as a whole."
        )
    return tuple(caveats)
