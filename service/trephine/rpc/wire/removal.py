"""What attacks on an export bring back."""

from __future__ import annotations

from trephine.domain import removal as domain
from trephine.rpc.wire.fields import clean
from trephine.v1 import removal_pb2 as pb

_VERDICTS: dict[domain.Verdict, pb.RemovalVerdict.ValueType] = {
    "removed": pb.REMOVAL_VERDICT_REMOVED,
    "suppressed": pb.REMOVAL_VERDICT_SUPPRESSED,
    "inconclusive": pb.REMOVAL_VERDICT_INCONCLUSIVE,
}
_KINDS: dict[domain.AttackKind, pb.AttackKind.ValueType] = {
    "recovery": pb.ATTACK_KIND_RECOVERY,
    "benign": pb.ATTACK_KIND_BENIGN,
    "few_shot": pb.ATTACK_KIND_FEW_SHOT,
}


def fate_to_wire(fate: domain.Fate) -> pb.Fate:
    """Write the word, and why, where no attack decided."""
    return pb.Fate(verdict=_VERDICTS[fate.verdict], reason=clean(fate.reason))


def removal_to_wire(removal: domain.Removal | None) -> pb.Removal | None:
    """Write the outcome of all attacks; None stays unset."""
    if removal is None:
        return None
    return pb.Removal(
        verdict=_VERDICTS[removal.verdict],
        why=clean(removal.why),
        figures=[_figure_to_wire(figure) for figure in removal.figures],
        n_tokens=removal.n_tokens,
        n_contexts=removal.n_contexts,
        effect=removal.effect,
        unrelated_behaviours=removal.unrelated_behaviours,
        seed=removal.seed,
    )


def _figure_to_wire(figure: domain.AttackFigure) -> pb.AttackFigure:
    return pb.AttackFigure(
        kind=_KINDS[figure.kind],
        strength=figure.strength,
        returned=_interval_to_wire(figure.returned),
        unrelated=_interval_to_wire(figure.unrelated),
        excess=_interval_to_wire(figure.excess),
        unrelated_most=figure.unrelated_most,
        unrelated_behaviours=figure.unrelated_behaviours,
        n_tokens=figure.n_tokens,
        n_contexts=figure.n_contexts,
    )


def _interval_to_wire(interval: domain.Interval) -> pb.ShareInterval:
    return pb.ShareInterval(value=interval.value, low=interval.low, high=interval.high)
