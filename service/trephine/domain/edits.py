"""Edits: named, versioned, revertible interventions; and the proposals they are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trephine.domain.ablation import LogitTarget
from trephine.domain.commands import Command, Progress
from trephine.domain.interventions import Intervention
from trephine.domain.sites import FeatureRef

MAX_PROPOSED = 1024
"""Candidates of a proposal, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSet:
    """A replacement set whose features an edit names; another set under that name is refused."""

    name: str
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPart:
    """An edit that another one was composed of."""

    name: str
    version: int
    content_hash: str
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One version of a stored edit. Versions are never changed, only followed by others.

    `content_hash` covers weights, sets and interventions: not name, author, reason or evidence.
    """

    name: str
    """Resource id, `no-mary`; the resource is `edits/no-mary`."""
    version: int
    content_hash: str
    interventions: tuple[Intervention, ...]
    reason: str
    author: str
    model: str
    weight_hash: str
    """The weights that the edit was made for; another parent is refused."""
    evidence: tuple[str, ...]
    """Resource names: `circuits/...`, `audits/...`."""
    create_time: str
    """RFC 3339, UTC: of the edit's first version."""
    update_time: str = ""
    """The same of this version; empty: it is the first."""
    sets: tuple[EditSet, ...] = ()
    """Replacement sets of its features, by name; none for neurons and directions."""
    reverted_from: int = 0
    """The version whose interventions this one brings back; 0: none."""
    parts: tuple[EditPart, ...] = ()
    """What it was composed of."""

    @property
    def reference(self) -> str:
        """Name and version, `no-mary@2`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedFeature:
    """A candidate of a proposal."""

    feature: FeatureRef
    effect: float
    """How far the target falls, measured, when it is ablated at positions >= 1, in logits."""
    use: float
    """rms activation x decoder norm on the retain text, positions >= 1."""
    score: float
    """|effect| over use; the ranking's key, for features that push towards the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Effect and damage of ablating the first `count` features at every position."""

    count: int
    value: float
    """The target quantity with these features ablated, in logits."""
    drop: float
    """Share of the baseline that is gone: (baseline - value) / baseline."""
    retain_kl: float
    """Nats per token over all positions of the retain text."""
    retain_kl_after_first: float
    """The same over positions >= 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditProposal:
    """The effect-against-damage curve, and the smallest prefix that meets both bounds."""

    baseline: float
    curve: tuple[CurvePoint, ...]
    ranking: tuple[RankedFeature, ...]
    chosen: int
    """Length of the chosen prefix; 0 if none meets both bounds, then nothing is to be shipped."""
    why: str
    """The decision in a sentence."""
    retain_tokens: int
    retain_text: str
    """Which text: a name and its sha256."""
    model: str
    weight_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeEdit(Command[EditProposal, Progress]):
    """Rank features by effect over use and find the smallest all-positions ablation that could ship."""

    interactive: ClassVar[bool] = False

    prompt: str
    target: LogitTarget
    min_drop: float = 0.5
    """Smallest share of the baseline that must be gone."""
    max_retain_kl: float = 0.1
    """Largest retain KL in nats per token, over all positions and over positions >= 1 apart."""
    max_features: int = 48
    """Candidates, whose effect and damage are measured one by one, and so the longest prefix; 1 to 1,024."""
    retain_text: str | None = None
    """None: the built-in retain text (at least 1,024 tokens)."""
