"""VerifyCircuit: what real ablations say about a circuit, beside baselines, random circuits and an adversary.

Every figure comes with the words that make it mean something: which ablation, which positions, what is
frozen, what becomes of the error term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Figure
from trephine.domain.interventions import ErrorTerm
from trephine.domain.standings import Standing as Standing


class Substitute(StrEnum):
    """What an ablated feature's activation becomes."""

    ZERO = "zero"
    MEAN = "mean"
    """Its mean over positions >= 1 of the built-in text."""
    RESAMPLE = "resample"
    """Its activation at the same position of the counterfactual prompt."""


class Predictor(StrEnum):
    """Something that says beforehand what an ablation does to the target."""

    SHOWN = "shown effect"
    """The effect that nodes show: activation times the exact gradient."""
    PATHS = "paths of the graph"
    """What the stored edges say, over all paths."""
    MAGNITUDE = "activation magnitude"
    ACTIVATION_GRADIENT = "activation x gradient"
    PERMUTED = "permuted edges"
    """The paths of the graph with the weights of every row dealt out anew among the row's sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How a predictor agrees with real ablations of one sort."""

    ablations: str
    """`single nodes`, `random groups`, `supernodes`, `whole layers`, `cumulative top-k`, ..."""
    predictor: Predictor
    count: int
    spearman: Figure
    slope: Figure
    """Slope through 0 of measured on predicted, both in logits."""
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A predictor against a baseline on the same single-node ablations."""

    predictor: Predictor
    baseline: Predictor
    difference: Figure
    """Of rank correlations, paired."""
    standing: Standing
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthAgreement:
    """Predicted against real change of the graph's own features some layers above an ablated one."""

    nearest: int
    """Layers above, at least; 0: features of another set that read above it in its own block."""
    farthest: int
    """Layers above, at most."""
    cosine: Figure
    """Mean over ablations."""
    nmse: Figure
    """Squared error over the squared real change, pooled; predicting no change at all gives 1."""
    ablations: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """Necessity and sufficiency of the circuit's features under one ablation. Quantities are in logits."""

    substitute: Substitute
    baseline: float
    """The plain model: nothing ablated, and errors as they are."""
    unablated: float | None = None
    """No feature ablated, but errors dealt with as in every other run: the baseline where the error term is
    live. None in verifications stored before this was told."""
    empty: float
    """Every feature ablated."""
    kept: float
    """Everything outside the circuit ablated: sufficiency."""
    removed: float
    """The circuit ablated: necessity."""
    faithfulness: float | None
    """(kept - empty) / (baseline - empty); None where ablating everything takes next to nothing away."""
    necessity: float | None
    """(unablated - removed) / (unablated - empty), likewise. Sufficiency counts from the baseline, being
    nearness to the model; what is taken away counts from where nothing is ablated: dropping errors is no
    ablation."""
    random_circuits: int
    random_kept: float
    """Mean over random circuits of the same size."""
    random_removed: float
    p_sufficient: float
    """(1 + #{|random kept - baseline| <= |kept - baseline|}) / (R + 1): alone it is as near to the model.
    NaN, inconclusive, where a run gave no number, or none moved the target."""
    p_necessary: float
    """(1 + #{random removed <= removed}) / (R + 1) where `unablated` is positive, else mirrored: ablating it
    takes as much away. NaN likewise."""
    how: str

    @property
    def start(self) -> float:
        """From where ablations take away."""
        return self.baseline if self.unablated is None else self.unablated


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """The mask outside the circuit that does the most damage, as far as a short search found."""

    substitute: Substitute
    baseline: float
    kept: float
    """Everything outside ablated."""
    relaxed: float
    """Lowest (for a positive target) with masks in [0, 1], logits."""
    rounded: float
    """Lowest with masks rounded to 0 or 1, measured anew."""
    random: float
    """Lowest of random masks with the same budget."""
    steps: int
    random_masks: int
    ablated: int
    """Features that the rounded mask ablates, of `outside`."""
    outside: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One ablation: what was predicted and what was measured, in logits."""

    ablations: str
    stratum: str
    nodes: int
    shown: float
    paths: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Everything that was measured on one circuit."""

    title: str
    replacement: str
    graph_features: int
    circuit_features: int
    """Features of the pruned circuit at positions >= 1."""
    first_position: int
    """Features of the pruned circuit at position 0, which are never ablated."""
    baseline: float
    agreements: tuple[Agreement, ...]
    comparisons: tuple[Comparison, ...]
    depths: tuple[DepthAgreement, ...]
    faithfulness: tuple[Faithfulness, ...]
    worst_case: WorstCase | None
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """What real ablations say about a circuit."""

    prompt: str
    target: str
    model: str
    weight_hash: str
    given: Examination
    control: Examination | None
    """The same circuit with a random dictionary of equal size and L0."""
    control_note: str
    """What the control is, or why there is none."""
    caveats: tuple[str, ...]
    seed: int
    seconds: float
    peak_extra_bytes: int
    units: str = "logits"
    """Of the target and of every change; empty for values of features, directions and scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationOptions:
    """How a circuit is verified."""

    counterfactual: str | None = None
    """A prompt of as many tokens, for resample ablation."""
    substitutes: tuple[Substitute, ...] = (Substitute.ZERO, Substitute.MEAN)
    error_term: ErrorTerm = ErrorTerm.LIVE
    """What becomes of a set's error; neurons have none."""
    nodes: int = 120
    """Single-node ablations."""
    groups: int = 24
    """Random groups; 0 leaves all groups out."""
    depth_nodes: int = 40
    """Single-node ablations whose change is followed upwards."""
    random_circuits: int = 20
    adversary_steps: int = 8
    control: bool = True
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for field, (fewest, most) in _LIMITS.items():
            if not fewest <= getattr(self, field) <= most:
                raise InvalidRequestError(
                    f"{field} must be from {fewest} to {most}, got {getattr(self, field)}", field=field
                )
        if not self.substitutes:
            raise InvalidRequestError("name at least one ablation", field="substitutes")
        if Substitute.RESAMPLE in self.substitutes and self.counterfactual is None:
            raise InvalidRequestError(
                "resample ablation takes activations from another prompt; give one as counterfactual",
                field="counterfactual",
            )

    def check_counterfactual(self, ids: Sequence[int], prompt: Sequence[int]) -> None:
        """Refuse a counterfactual that resample ablation cannot take activations from.

        Args:
            ids: Its tokens.
            prompt: The prompt's.

        Raises:
            InvalidRequestError: If there are more or fewer than the prompt has, or all are the prompt's.
        """
        if len(ids) != len(prompt):
            raise InvalidRequestError(
                f"the counterfactual has {len(ids)} tokens and the prompt {len(prompt)}: resample ablation "
                "takes activations from the same position, so that both must be equally long",
                field="counterfactual",
            )
        if list(ids) == list(prompt):
            raise InvalidRequestError(
                "the counterfactual is the prompt itself, so that resample ablation would change nothing: "
                "give another of the same length",
                field="counterfactual",
            )


FEWEST_SINGLES = 100
"""Single nodes below which a verification says how few there were."""
_LIMITS = {
    "nodes": (FEWEST_SINGLES, 10_000),
    "groups": (0, 1_000),
    "depth_nodes": (0, 1_000),
    "random_circuits": (20, 10_000),
    "adversary_steps": (0, 100),
    "bootstrap": (100, 10_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyCircuit(Command[VerificationReport, Progress]):
    """Verify a circuit by ablations of the real model."""

    interactive: ClassVar[bool] = False

    circuit: Circuit
    kept: tuple[int, ...]
    """Indices of the nodes that pruning keeps: the circuit that is verified."""
    supernodes: tuple[tuple[int, ...], ...] = ()
    """Groups of nodes that belong together; empty: one feature at all its positions is a group."""
    options: VerificationOptions = VerificationOptions()

    def __post_init__(self) -> None:
        n_nodes = len(self.circuit.nodes)
        for field, numbers in (("kept", self.kept), *(("supernodes", each) for each in self.supernodes)):
            if any(not 0 <= number < n_nodes for number in numbers):
                raise InvalidRequestError(f"the circuit has nodes 0 to {n_nodes - 1}", field=field)


def ablated_features(circuit: Circuit, kept: Sequence[int]) -> tuple[int, ...]:
    """Return the features that are ablated: position 0 is an attention sink and never is.

    Args:
        circuit: The circuit.
        kept: Indices of the nodes that pruning keeps.

    Raises:
        InvalidRequestError: If there are none.
    """
    nodes = circuit.nodes
    later = tuple(n for n in kept if nodes[n].kind is NodeKind.FEATURE and nodes[n].position > 0)
    if not later:
        raise InvalidRequestError(
            "the pruned circuit has no feature at positions >= 1, so that there is nothing to ablate; prune "
            "less, or discover it with more nodes",
            field="node_threshold",
        )
    return later
