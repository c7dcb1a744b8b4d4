"""One forward pass of a static ragged batch in which every row has its own interventions (DESIGN 5.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trephine.domain.errors import (
    EmptyPromptError,
    InvalidRequestError,
    NothingMatchedError,
    PromptTooLongError,
    TrephineError,
    UnsupportedInterventionError,
)
from trephine.domain.interventions import (
    Applied,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    PatternMode,
)
from trephine.domain.sites import Site
from trephine.engine.interventions.selection import check_selector
from trephine.engine.models.attention import PatternTape
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import require_site
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.forward import Batch, Pass, forward, left_padded
from trephine.engine.runs.plans import Donors, RowPlan, donor_text
from trephine.engine.runs.refusals import check_intervention, is_of_set, site_written
from trephine.engine.runs.resumption import CleanRun


@dataclass(frozen=True, slots=True)
class RowInput:
    """One row of a batch."""

    ids: Sequence[int]
    interventions: tuple[Intervention, ...] = ()
    n_prompt: int | None = None
    """Tokens from here on count as generated; None means that all are prompt."""
    from_edits: int = 0
    """The first so many interventions may match nothing: edits are made for more than one text."""

    @property
    def prompt_length(self) -> int:
        """Number of prompt tokens."""
        return len(self.ids) if self.n_prompt is None else self.n_prompt

    @property
    def own(self) -> set[int]:
        """Indices of the interventions that were meant for this very row, and so must match."""
        return set(range(self.from_edits, len(self.interventions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsOutput:
    """What a batch gave, row by row, without padding."""

    logits: list[Tensor]
    """`(n_pos, d_vocab)`, or `(keep_last, d_vocab)`."""
    applied: list[tuple[Applied, ...]]
    """One echo per intervention."""
    values: list[dict[Site, Tensor]]
    """`(n_pos, width)` for every site that was read, after the interventions at that site or before them."""
    patterns: list[dict[int, Tensor]] = field(default_factory=list)
    """`(n_heads, n_pos, n_pos)` by layer, if they were asked for."""


def run_rows(
    hosted: HostedModel,
    rows: Sequence[RowInput],
    *,
    reads: Sequence[Site] = (),
    reads_before: bool = False,
    record_patterns: bool = False,
    keep_last: int | None = None,
    allow_unmatched: bool = False,
    clean: CleanRun | None = None,
) -> RowsOutput:
    """Run all rows in one forward pass. A row's result does not depend on its neighbours (law 7).

    Args:
        hosted: The model.
        rows: At least one; lengths may differ. The caller chooses how many make a quantum.
        reads: Sites whose activations are returned.
        reads_before: Return what arrives at them, before anything is written at the same site.
        record_patterns: Return the attention patterns, interventions on them included.
        keep_last: Compute only that many last logits of every row, which saves memory. 0: none; the pass
            ends behind the deepest site that is read.
        allow_unmatched: Report interventions that matched no position as zero instead of refusing them,
            for texts in which a token may well be absent or a position lie beyond the end.
        clean: A clean run of the ids that all rows have: layers in which they repeat it are not computed.

    Raises:
        NothingMatchedError: If an intervention wrote nothing.
        TrephineError: If an intervention names what does not exist or is not supported; see
            `trephine.engine.runs.refusals`.
    """
    for site in reads:
        require_site(hosted.architecture, site)
    for row in rows:
        check_row(hosted, row, any_position=allow_unmatched)
    plans = plan_rows(hosted, rows)
    batch = left_padded(hosted, [(row.ids, row.prompt_length) for row in rows])
    tape = frozen_patterns(hosted, batch, [row.interventions for row in rows])
    tape.record = record_patterns
    if clean is not None and any(tuple(row.ids) != clean.ids for row in rows):
        raise ValueError("a row is not what the clean run ran")
    if record_patterns or tape.imposed:
        clean = None  # patterns are wanted of every layer
    request = Pass(plans=plans, reads=reads, before=reads_before, tape=tape, keep_last=keep_last, clean=clean)
    logits = forward(hosted, batch, request)
    if not allow_unmatched:
        require_matches(plans, rows)
    return _unpadded(batch, logits, plans, request, tape)


def check_row(hosted: HostedModel, row: RowInput, *, room: int = 0, any_position: bool = False) -> None:
    """Refuse a row that cannot be run.

    Args:
        hosted: The model.
        row: What is to be run.
        room: How many tokens will still be generated.
        any_position: Let selectors name positions that the row does not have.

    Raises:
        TrephineError: With the offending intervention's index in its context.
    """
    info = hosted.info
    if not row.ids:
        raise EmptyPromptError("a row has no token; write some text")
    if len(row.ids) + room > info.context_length:
        raise PromptTooLongError(
            f"{len(row.ids)} tokens and {room} more exceed the context of {info.context_length}; "
            "shorten the text",
            tokens=len(row.ids),
            room=room,
            limit=info.context_length,
        )
    for index, intervention in enumerate(row.interventions):
        anywhere = any_position or index not in row.own
        with naming(row, index):
            check_intervention(hosted, intervention)
            check_selector(
                intervention.selector,
                n_prompt=info.context_length if anywhere else row.prompt_length,
                n_positions=info.context_length if anywhere else len(row.ids) + room,
                d_vocab=info.d_vocab,
            )


@contextmanager
def naming(row: RowInput, index: int) -> Iterator[None]:
    """Say in an error which intervention it is about: its place among the row's own, or among its edits'."""
    try:
        yield
    except TrephineError as error:
        if index in row.own:
            error.context.setdefault("intervention", index - row.from_edits)
        else:
            error.context.setdefault("intervention_of_edits", index)
        raise


def plan_rows(hosted: HostedModel, rows: Sequence[RowInput]) -> list[RowPlan]:
    """Compile the interventions of every row, running the clean passes that they need."""
    donors = _donors(hosted, (intervention for row in rows for intervention in row.interventions))
    return [RowPlan(hosted, row.interventions, donors, _clean_errors(hosted, row)) for row in rows]


def frozen_patterns(hosted: HostedModel, batch: Batch, rows: Sequence[Sequence[Intervention]]) -> PatternTape:
    """Return a tape that holds the clean run's patterns for the rows that freeze them.

    Raises:
        UnsupportedInterventionError: If one row wants them both frozen and live.
    """
    frozen = [_is_frozen(interventions) for interventions in rows]
    if not any(frozen):
        return PatternTape()
    clean = PatternTape(record=True)
    forward(hosted, batch, Pass(tape=clean, keep_last=1))
    mask = torch.tensor(frozen, device=batch.input_ids.device)
    return PatternTape(imposed=clean.recorded, imposed_rows=dict.fromkeys(clean.recorded, mask))


def require_matches(
    plans: Sequence[RowPlan],
    rows: Sequence[RowInput],
    *,
    only: Sequence[set[int]] | None = None,
    numbers: Sequence[int] | None = None,
) -> None:
    """Refuse silence: an intervention that wrote nothing would look like one that does nothing.

    Args:
        plans: One per row.
        rows: What was planned; interventions of stored edits may match nothing.
        only: Look at these indices, per row. None: at all that were meant for the row.
        numbers: The rows' places in the request. None: as they come.

    Raises:
        NothingMatchedError: Naming row and intervention, counted among the row's own.
    """
    for place, (plan, row) in enumerate(zip(plans, rows, strict=True)):
        looked_at = row.own if only is None else only[place]
        for applied in plan.applied():
            if applied.positions == 0 and applied.index in looked_at:
                index = applied.index - row.from_edits
                raise NothingMatchedError(
                    f"intervention {index} matched no position; check the selector's positions, tokens and "
                    "phases, and the condition",
                    field=f"interventions[{index}].selector",
                    row=place if numbers is None else numbers[place],
                    intervention=index,
                )


def _is_frozen(interventions: Sequence[Intervention]) -> bool:
    modes = {intervention.mode.patterns for intervention in interventions}
    if len(modes) > 1:
        raise UnsupportedInterventionError(
            "mode.patterns: one row cannot hold patterns frozen for some interventions and live for others; "
            "use two rows",
            field="mode.patterns",
        )
    return modes == {PatternMode.FROZEN}


def _donors(hosted: HostedModel, interventions: Iterable[Intervention]) -> Donors:
    """Run every text that is named once, without interventions, reading the sites that need it."""
    wanted: dict[str, set[Site]] = {}
    for intervention in interventions:
        text = donor_text(intervention)
        if text is not None:
            wanted.setdefault(text, set()).add(site_written(hosted, intervention))
            if isinstance(intervention.operation, MeanAblate) and len(hosted.encode(text)) < 2:
                raise InvalidRequestError(
                    "mean_ablate needs a text of at least two tokens: position 0 is left out of the mean",
                    field="operation.text",
                )
    donors: dict[tuple[str, Site], Tensor] = {}
    for text, sites in wanted.items():
        values = run_rows(hosted, [RowInput(hosted.encode(text))], reads=sorted(sites), keep_last=0).values[0]
        donors |= {(text, site): value for site, value in values.items()}
    return donors


def _clean_errors(hosted: HostedModel, row: RowInput) -> dict[Site, Tensor]:
    """Return the clean run's error `(n_pos, width)` at every output site whose error term is frozen."""
    layers = {
        (intervention.target.feature.replacement, intervention.target.feature.layer)
        for intervention in row.interventions
        if isinstance(intervention.target, FeatureTarget)
        and is_of_set(intervention)
        and intervention.error_term is ErrorTerm.FROZEN
    }
    if not layers:
        return {}
    infos = {key: layer_info(hosted, *key) for key in sorted(layers)}
    sites = sorted({site for info in infos.values() for site in (info.site_in, *info.sites_out)})
    clean = run_rows(hosted, [RowInput(row.ids)], reads=sites, keep_last=0).values[0]
    errors: dict[Site, Tensor] = {}
    for (name, layer), info in infos.items():
        with opened(hosted, name, [layer]) as resident, torch.inference_mode():
            found = resident[layer].reconstruct(clean[info.site_in])
        errors |= {site: clean[site] - found[site].to(clean[site].dtype) for site in info.sites_out}
    return errors


def _unpadded(
    batch: Batch, logits: Tensor, plans: Sequence[RowPlan], request: Pass, tape: PatternTape
) -> RowsOutput:
    starts = [span.offset for span in batch.spans]
    dropped = 0 if request.keep_last is None else batch.input_ids.shape[1] - logits.shape[1]
    return RowsOutput(
        logits=[logits[i, max(start - dropped, 0) :] for i, start in enumerate(starts)],
        applied=[plan.applied() for plan in plans],
        values=[{site: v[i, start:] for site, v in request.values.items()} for i, start in enumerate(starts)],
        patterns=[
            {layer: p[i, :, start:, start:] for layer, p in sorted(tape.recorded.items())}
            for i, start in enumerate(starts)
        ]
        if tape.record
        else [],
    )
