"""What an edit does to what it is for, what it does to the rest, and what others would have done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.circuit_verification import Standing
from trephine.client.types.common import FeatureRef, Figure, Version
from trephine.client.types.text import Applied


class EvaluationRole(StrEnum):
    """What a set of texts or items is there for."""

    UNSPECIFIED = "unspecified"
    TARGET = "target"
    """The edit is to change the answers here."""
    RETAIN = "retain"
    """It is to leave them alone."""


class EvaluationArm(StrEnum):
    """What is compared."""

    UNSPECIFIED = "unspecified"
    EDIT = "edit"
    NO_OP = "no_op"
    RANDOM = "random"
    WRONG_LAYER = "wrong_layer"
    PROMPT = "prompt"
    MATCHED_EDIT = "matched_edit"


class EditVerdict(StrEnum):
    """The word for an edit. Doubt is INCONCLUSIVE."""

    UNSPECIFIED = "unspecified"
    SELECTIVE = "selective"
    DAMAGING = "damaging"
    UNSPECIFIC = "unspecific"
    INEFFECTIVE = "ineffective"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceItem(WireValue):
    """A question with answers to choose from; the model's choice is the likeliest."""

    prompt: str
    choices: tuple[str, ...]
    """At least two; each follows the prompt as it stands."""
    answer: int
    """Index of the choice whose log-odds are the behaviour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet(WireValue):
    """At least 8 texts, or items, of one role."""

    name: str
    role: EvaluationRole
    texts: tuple[str, ...] = ()
    items: tuple[ChoiceItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationBounds(WireValue):
    """What counted as an effect, and what as damage."""

    min_log_odds: float | None = None
    min_kl: float | None = None
    max_retain_kl: float | None = None
    max_accuracy_drop: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult(WireValue):
    """One arm on one set."""

    arm: EvaluationArm
    figures: tuple[Figure, ...]

    def figure(self, name: str) -> Figure | None:
        """One figure by name."""
        return next((one for one in self.figures if one.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlComparison(WireValue):
    """The edit beside other features, on the very same units: effect on targets, damage elsewhere."""

    arm: EvaluationArm
    statistic: str
    effect: float
    """The edit's."""
    values: tuple[float, ...]
    """Of every control set."""
    p_value: float
    """(1 + `reached`) / (sets that change anything + 1)."""
    adjusted_p_value: float
    units: int
    tokens: int
    reached: int
    """How many control sets do as much as the edit, or more; of damage, to the worse side."""
    quantiles: tuple[float, ...]
    """Of `values`, at 5 %, 50 % and 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedSet(WireValue):
    """Everything about one set."""

    name: str
    role: EvaluationRole
    units: int
    tokens: int
    sha256: str
    arms: tuple[ArmResult, ...]
    controls: tuple[ControlComparison, ...]

    def arm(self, arm: EvaluationArm) -> ArmResult | None:
        """One arm, if it was run here."""
        return next((one for one in self.arms if one.arm is arm), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UncontrolledFeature(WireValue):
    """A target of the edit without a control."""

    feature: FeatureRef
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMatching(WireValue):
    """How controls were matched."""

    matched: int
    unmatched: tuple[UncontrolledFeature, ...]
    factor: float
    wrong_layer_factor: float
    wrong_layers: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCandidate(WireValue):
    """A prompt that was tried."""

    label: str
    tokens: int
    behaviour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptingResult(WireValue):
    """The edit beside a prompt at the same behaviour."""

    candidates: tuple[PromptCandidate, ...]
    chosen: str
    plain_behaviour: float
    edit_behaviour: float
    strength: float | None
    """Of the edit, at which its behaviour is the prompt's; None: there is none."""
    differences: tuple[Figure, ...]
    """Damage of the prompt less that of the edit at that strength, one per retain set."""
    standing: Standing
    """Whether the edit does less damage."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditEvaluation(WireValue):
    """Effect, damage, controls, and the word for them."""

    name: str
    """Resource name, `edits/no-mary/evaluations/...`; empty for a prediction."""
    edit: str
    """Resource name of the version that was measured, `edits/no-mary@2`."""
    content_hash: str
    verdict: EditVerdict
    why: str
    would_decide: str
    sets: tuple[EvaluatedSet, ...]
    matching: ControlMatching
    prompting: PromptingResult | None
    """None: no prompt was tried."""
    applied: tuple[Applied, ...]
    bounds: EvaluationBounds
    caveats: tuple[str, ...]
    resamples: int
    seed: int
    seconds: float
    peak_extra_bytes: int
    """Of a prediction."""
    version: Version
    create_time: str
