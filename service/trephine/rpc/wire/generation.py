"""Generation and scoring."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.edit_conflicts import EditInUse
from trephine.domain.errors import InvalidRequestError
from trephine.domain.generation import (
    Completion,
    Generate,
    Generation,
    Row,
    RowScore,
    Sampling,
    Score,
    ScoredRow,
    Scores,
    TokenEvent,
)
from trephine.rpc.wire.common import token_to_wire, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, prompt, within
from trephine.rpc.wire.interventions import interventions_from_wire
from trephine.rpc.wire.live_edits import own_echo, split_echo
from trephine.v1 import generation_service_pb2 as pb

DEFAULT_NEW_TOKENS = 64


def generate_from_wire(request: pb.GenerateRequest) -> Generate:
    """Read a generation.

    Raises:
        InvalidRequestError: Naming the field, `rows[2].prompt`.
    """
    if not request.rows:
        raise InvalidRequestError("at least one row is needed", field="rows")
    tokens = request.max_new_tokens if request.HasField("max_new_tokens") else DEFAULT_NEW_TOKENS
    return Generate(
        rows=tuple(_row_from_wire(index, row) for index, row in enumerate(request.rows)),
        max_new_tokens=at_least(tokens, 1, "max_new_tokens"),
        sampling=_sampling_from_wire(request),
    )


def token_event_to_wire(event: TokenEvent) -> pb.GenerateResponse:
    """Write one generated token."""
    token = pb.TokenEvent(
        row=event.row,
        step=event.step,
        token=token_to_wire(event.token),
        text=clean(event.text),
        log_probability=event.log_probability,
    )
    return pb.GenerateResponse(token=token)


def generation_to_wire(
    generation: Generation, stacks: Sequence[Sequence[EditInUse]] = ()
) -> pb.GenerateResponse:
    """Write the end of a generation, whose rows were served under stacks of edits, one per row or none."""
    under = stacks or [()] * len(generation.completions)
    finished = pb.GenerationFinished(
        completions=[
            _completion_to_wire(completion, stack)
            for completion, stack in zip(generation.completions, under, strict=True)
        ],
        version=version_to_wire(generation.model, generation.weight_hash),
    )
    return pb.GenerateResponse(finished=finished)


def score_from_wire(request: pb.ScoreRequest) -> Score:
    """Read rows to score.

    Raises:
        InvalidRequestError: Naming the field, `rows[2].continuation`.
    """
    if not request.rows:
        raise InvalidRequestError("at least one row is needed", field="rows")
    return Score(rows=tuple(_scored_row_from_wire(index, row) for index, row in enumerate(request.rows)))


def scores_to_wire(scores: Scores, stacks: Sequence[Sequence[EditInUse]] = ()) -> pb.ScoreResponse:
    """Write scores, in order, of rows that were served under stacks of edits, one per row or none."""
    under = stacks or [()] * len(scores.rows)
    return pb.ScoreResponse(
        rows=[_row_score_to_wire(row, stack) for row, stack in zip(scores.rows, under, strict=True)],
        version=version_to_wire(scores.model, scores.weight_hash),
    )


def _row_from_wire(index: int, row: pb.GenerationRow) -> Row:
    with within(f"rows[{index}]"):
        return Row(prompt=prompt(row.prompt), interventions=interventions_from_wire(row.interventions))


def _scored_row_from_wire(index: int, row: pb.ScoreRow) -> ScoredRow:
    with within(f"rows[{index}]"):
        return ScoredRow(
            prompt=prompt(row.prompt),
            continuation=prompt(row.continuation, "continuation"),
            interventions=interventions_from_wire(row.interventions),
        )


def _sampling_from_wire(request: pb.GenerateRequest) -> Sampling:
    temperature = finite(request.temperature, "temperature")
    if temperature < 0:
        raise InvalidRequestError(f"temperature must be >= 0, got {temperature}", field="temperature")
    top_p = finite(request.top_p, "top_p") if request.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise InvalidRequestError(f"top_p must be in (0, 1], got {top_p}", field="top_p")
    return Sampling(temperature=temperature, top_p=top_p, seed=request.seed)


def _completion_to_wire(completion: Completion, stack: Sequence[EditInUse]) -> pb.Completion:
    edits, own = split_echo(completion.applied, stack)
    return pb.Completion(
        text=clean(completion.text),
        token_ids=completion.token_ids,
        finish_reason=clean(completion.finish_reason),
        applied=own_echo(own, len(completion.applied) - len(own)),
        n_prompt_tokens=completion.n_prompt_tokens,
        caveats=map(clean, completion.caveats),
        edits=edits,
    )


def _row_score_to_wire(row: RowScore, stack: Sequence[EditInUse]) -> pb.RowScore:
    edits, own = split_echo(row.applied, stack)
    return pb.RowScore(
        token_ids=row.token_ids,
        log_probabilities=row.log_probabilities,
        top_token_ids=row.top_token_ids,
        kl=row.kl,
        applied=own_echo(own, len(row.applied) - len(own)),
        caveats=map(clean, row.caveats),
        edits=edits,
    )
