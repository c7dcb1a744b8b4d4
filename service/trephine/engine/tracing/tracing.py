"""TraceAttention: one entry of a pattern, taken apart into what its query and keys were made of."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from trephine.domain.attention import AttentionTrace, SourceKind, TraceAttention
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    PositionOutOfRangeError,
    TrephineError,
)
from trephine.domain.sites import NEURONS, LayerRef
from trephine.engine.attribution.attention_scores import check_pattern, head_scores
from trephine.engine.attribution.expansion import check_sums
from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.graphs.actives import ActiveFeatures, activate
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.graphs.stream import StreamPart, StreamSources
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.sets import covered_layers
from trephine.engine.tracing.softmax_paths import allocate, weights_of
from trephine.engine.tracing.tracing_answer import trace_of
from trephine.engine.tracing.tracing_sums import KINDS, Entry, Sums, empty_ranking

_PAIRED = 64
"""Sources of each side that are multiplied out into pairs, at least."""


def trace_attention(
    session: Session, command: TraceAttention
) -> Generator[Progress | None, None, AttentionTrace]:
    """Explain a pattern entry; one kind of writers of one layer per quantum.

    Raises:
        LayerOutOfRangeError, InvalidRequestError, PositionOutOfRangeError: For what the model lacks.
        ReplacementNotFoundError: For a set that is not loaded.
        UnsupportedOptionError: If no attribution law holds for a layer of the set.
        NotConvergedError: If contributions through the softmax do not add up to the exact change.
    """
    hosted = session.require_model().pinned()
    ids = _validate(hosted, command)
    yield Progress(stage="forward", done=0, total=1)
    operators = capture(hosted.model, hosted.architecture, ids)
    yield Progress(stage="forward", done=1, total=1)
    active = yield from _activate(hosted, operators, command)
    with torch.inference_mode():
        entry = _entry(operators, command, len(ids))
    sums = yield from _walk(hosted, operators, active, entry, command)
    with torch.inference_mode():
        return trace_of(hosted, operators, command, hosted.tokens(ids), entry, sums)


def _validate(hosted: HostedModel, command: TraceAttention) -> list[int]:
    architecture = hosted.architecture
    if command.layer >= architecture.n_layers:
        raise LayerOutOfRangeError(
            f"layer {command.layer} does not exist: the model has layers 0 to {architecture.n_layers - 1}",
            field="layer",
            layer=command.layer,
        )
    if command.head >= architecture.n_heads:
        raise InvalidRequestError(
            f"head {command.head} does not exist: a layer has heads 0 to {architecture.n_heads - 1}",
            field="head",
        )
    for number, name in enumerate(command.sets):
        try:
            covered_layers(hosted, name)
        except TrephineError as error:
            raise error.with_field(f"beside[{number - 1}]" if number else "replacement") from None
    _layers_below(hosted, command)
    ids = hosted.encode(command.prompt)
    for name in ("query", "key"):
        position = getattr(command, name)
        if position is not None and not 0 <= position < len(ids):
            raise PositionOutOfRangeError(
                f"{name} {position} does not exist: the prompt has positions 0 to {len(ids) - 1}",
                field=name,
                position=position,
            )
    return ids


def _activate(
    hosted: HostedModel, operators: FrozenOperators, command: TraceAttention
) -> Generator[None, None, ActiveFeatures | None]:
    if command.replacement == NEURONS:
        return None
    return (yield from activate(hosted, operators, _layers_below(hosted, command)))


def _layers_below(hosted: HostedModel, command: TraceAttention) -> tuple[LayerRef, ...]:
    """List what is opened: what lies above the pattern's layer does not write what it reads."""
    return open_layers(hosted, command.sets, range(command.layer + 1))


def _entry(operators: FrozenOperators, command: TraceAttention, n_pos: int) -> Entry:
    layer = operators.layers[command.layer]
    query = n_pos - 1 if command.query is None else command.query
    scores = head_scores(layer, command.head)
    visible, row = scores.visible(query), scores.scores(query)
    weights = weights_of(row.double(), scores.softcap)
    check_pattern(layer, command.head, query, visible, weights)
    key = int(visible[int(weights.argmax())]) if command.key is None else command.key
    if key not in visible.tolist():
        raise PositionOutOfRangeError(
            f"query {query} sees keys {int(visible[0])} to {query} in layer {command.layer}, and not {key}",
            field="key",
            position=key,
        )
    measured = (visible == key).to(torch.float64)
    others = row.masked_fill(visible == key, -torch.inf)
    return Entry(
        layer=command.layer,
        head=command.head,
        query=query,
        key=key,
        runner_up=int(visible[int(others.argmax())]) if len(visible) > 1 else None,
        scores=scores,
        visible=visible,
        row=row,
        measured=measured,
        path=allocate(torch.zeros_like(row), row, measured, scores.softcap),
    )


def _walk(
    hosted: HostedModel,
    operators: FrozenOperators,
    active: ActiveFeatures | None,
    entry: Entry,
    command: TraceAttention,
) -> Generator[Progress | None, None, Sums]:
    """Meet every summand of the stream at the query and at all visible keys, once."""
    like, n_keys, sets = operators.embedding, len(entry.visible), command.sets
    paired, room = max(command.top, _PAIRED), max(command.top, 1)
    kinds = like.new_zeros(len(KINDS), like.shape[1])
    sums = Sums(
        query_side=empty_ranking(room, n_keys, like, sets, vectors=False),
        key_side=empty_ranking(room, 1, like, sets, vectors=False),
        query_pairs=empty_ranking(paired, n_keys, like, sets, vectors=True),
        key_pairs=empty_ranking(paired, 1, like, sets, vectors=True),
        query_kinds=kinds.clone(),
        key_kinds=kinds.clone(),
    )
    with torch.inference_mode():
        scores, here = entry.scores, entry.visible
        from_keys = scores.queries.pull_back(scores.key[here], torch.full_like(here, entry.query))
        from_query = scores.keys.pull_back(scores.query[[entry.query]].expand(n_keys, -1), here)
    sources = StreamSources(hosted=hosted, operators=operators, active=active, layer=entry.layer)
    parts, done = sources.parts(entry.visible.tolist()), 0
    while True:
        with torch.inference_mode():
            part = next(parts, None)
            if part is None:
                break
            _meet(part, entry, sums, scores.scaling * from_keys, scores.scaling * from_query)
        if part.layer > done:
            done = part.layer
            yield Progress(stage="sources", done=done, total=entry.layer)
    _check_stream(operators, entry, sums)
    return sums


def _meet(part: StreamPart, entry: Entry, sums: Sums, from_keys: Tensor, from_query: Tensor) -> None:
    """Score summands: on the query side against every key, on the key side against the query.

    Constants of the projections belong to the bias; they are added at the end, as they are no summands.
    """
    worth = entry.path.worth
    columns = part.position - int(entry.visible[0])
    own = (part.vectors * from_query[columns]).sum(-1)
    added = _constants(entry) if part.kind is SourceKind.BIAS else None
    if added is not None:
        own = own + added[1][columns]
    every = torch.arange(len(own), device=own.device)
    sums.key_side.add(part, every, own.double() * worth[columns], own[:, None])
    at_query = (part.position == entry.query).nonzero().flatten()
    at_key = (part.position == entry.key).nonzero().flatten()
    kind = KINDS.index(part.kind)
    if len(at_query):
        scores = part.vectors[at_query] @ from_keys.T  # (n, n_keys)
        if added is not None:
            scores = scores + added[0]
        sums.query_side.add(part, at_query, scores.double() @ worth, scores)
        sums.query_pairs.add(part, at_query, scores[:, entry.column(entry.key)], scores)
        sums.query_kinds[kind] += part.vectors[at_query].sum(0)
    if len(at_key):
        sums.key_pairs.add(part, at_key, own[at_key], own[at_key, None])
        sums.key_kinds[kind] += part.vectors[at_key].sum(0)


def _constants(entry: Entry) -> tuple[Tensor, Tensor]:
    """Parts of scores from the constants of the query's and of the keys' projection, `(n_keys,)` each."""
    scores, here = entry.scores, entry.visible
    of_query = scores.queries.constant(here.new_tensor([entry.query]))[0]
    of_keys = scores.keys.constant(here)
    query = scores.query[entry.query]
    return scores.scaling * scores.key[here] @ of_query, scores.scaling * of_keys @ query


def _check_stream(operators: FrozenOperators, entry: Entry, sums: Sums) -> None:
    """Hold the summands to the stream that the block read, at the query and at the key (law 3's kind)."""
    stream = operators.layers[entry.layer].resid_pre
    found = torch.stack([sums.query_kinds.sum(0), sums.key_kinds.sum(0)])
    expected = stream[[entry.query, entry.key]]
    scale = torch.stack([sums.query_kinds.abs().sum(0), sums.key_kinds.abs().sum(0)]).amax(1, keepdim=True)
    check_sums(operators, found.flatten(), expected.flatten(), scale.expand_as(found).flatten())


HANDLERS: dict[type, Handler] = {TraceAttention: trace_attention}
"""Commands of this module."""
