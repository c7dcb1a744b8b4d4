"""What could ship: an effect-against-damage curve, the chosen prefix, and the edit drafted from it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from trephine.client.errors import NothingToShipError
from trephine.client.interventions import Intervention, feature
from trephine.client.types import CurvePoint, FeatureRef, Proposal, RankedFeature


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDraft(Sequence[Intervention]):
    """Interventions that know which model they are for. Store them with `edits.create`."""

    interventions: tuple[Intervention, ...]
    model: str
    """Resource name of the model."""
    reason: str = ""
    evidence: tuple[str, ...] = ()

    @overload
    def __getitem__(self, place: int) -> Intervention: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Intervention, ...]: ...
    def __getitem__(self, place: int | slice) -> Intervention | tuple[Intervention, ...]:
        return self.interventions[place]

    def __len__(self) -> int:
        return len(self.interventions)

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.interventions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The smallest prefix of the ranking that lowers the target enough at little damage elsewhere."""

    proposal: Proposal
    model: str
    circuit: str = ""
    """Resource name of the circuit it was made from, if it was."""

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """Effect and damage for every prefix that was measured."""
        return self.proposal.curve

    @property
    def ranking(self) -> tuple[RankedFeature, ...]:
        """All candidates, best first."""
        return self.proposal.ranking

    @property
    def why(self) -> str:
        """The decision in a sentence."""
        return self.proposal.why

    @property
    def features(self) -> tuple[FeatureRef, ...]:
        """The chosen features; empty if nothing could ship."""
        return tuple(ranked.feature for ranked in self.ranking[: self.proposal.chosen])

    def ablate(self) -> EditDraft:
        """Set every chosen feature to zero at every position: what weights can express exactly.

        Raises:
            NothingToShipError: If no prefix meets both bounds.
        """
        return self._draft(
            [feature(f.layer, f.index, replacement=f.replacement).ablate() for f in self._some()]
        )

    def scale(self, factor: float) -> EditDraft:
        """Multiply every chosen feature instead. The bounds were measured for ablation only.

        Raises:
            NothingToShipError: If no prefix meets both bounds.
        """
        return self._draft(
            [feature(f.layer, f.index, replacement=f.replacement).scale(factor) for f in self._some()]
        )

    def _some(self) -> tuple[FeatureRef, ...]:
        if not self.features:
            raise NothingToShipError(f"nothing could ship: {self.why}")
        return self.features

    def _draft(self, interventions: list[Intervention]) -> EditDraft:
        evidence = (self.circuit,) if self.circuit else ()
        return EditDraft(
            interventions=tuple(interventions), model=self.model, reason=self.why, evidence=evidence
        )

    def _repr_html_(self) -> str:
        """For notebooks: the curve as a table, the chosen row in bold."""
        rows = "".join(_row(point, chosen=point.count == self.proposal.chosen) for point in self.curve)
        head = "<tr><th>features</th><th>target, logits</th><th>drop</th><th>retain KL, nats</th></tr>"
        return f"<p>{html.escape(self.why)}</p><table>{head}{rows}</table>"


def _row(point: CurvePoint, *, chosen: bool) -> str:
    cells = (
        str(point.count),
        f"{point.value:.3f}",
        f"{point.drop:.1%}",
        f"{point.retain_kl:.4f} ({point.retain_kl_after_first:.4f} at positions ≥ 1)",
    )
    tag = "th" if chosen else "td"
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
