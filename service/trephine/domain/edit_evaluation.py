"""What an edit does to what it is for, what it does to the rest, and what others would have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, floor, isfinite, nan
from typing import ClassVar

from trephine.domain.ablation import UnmatchedFeature
from trephine.domain.commands import Command, Progress
from trephine.domain.control_counts import acting, reached
from trephine.domain.edits import Edit
from trephine.domain.errors import InvalidRequestError, TooFewItemsError
from trephine.domain.findings import Figure
from trephine.domain.interventions import Applied, require_finite
from trephine.domain.verification import Standing

FEWEST_UNITS = 8
"""Texts or items below which no interval is given: over fewer none that is told holds."""
FEWEST_CONTROLS = 99
"""Control sets below which no effect is called specific."""
FEWEST_ELSEWHERE = 19
"""Sets of another layer below which it is told that they hardly bound how many of those do as much."""
FEWEST_ACTING = 19
"""Random sets that change a target set at all: beside fewer no p-value is 0.05."""
QUANTILES = (0.05, 0.5, 0.95)
"""Of control sets, as reports show them."""
RETAIN_CUT_TOKENS = 16
"""Texts of retain sets are cut to no fewer tokens than these to be run with controls."""


class SetRole(StrEnum):
    """What a set of texts or items is there for."""

    TARGET = "target"
    """The edit is to change the answers here."""
    RETAIN = "retain"
    """It is to leave them alone."""


class EvaluationArm(StrEnum):
    """What is compared."""

    EDIT = "edit"
    NO_OP = "no_op"
    """The same hooks with operations that do nothing: whatever this shows is no effect."""
    RANDOM = "random"
    """The same operation on random features of the layer, matched in frequency and size."""
    WRONG_LAYER = "wrong_layer"
    """The same operation on matched features of another layer."""
    PROMPT = "prompt"
    """The plain model behind a prompt that reaches the same behaviour."""
    MATCHED_EDIT = "matched_edit"
    """The edit at the strength at which its behaviour is the prompt's."""


class EditVerdict(StrEnum):
    """The word for an edit. Doubt is INCONCLUSIVE."""

    SELECTIVE = "selective"
    """It changes its targets more than matched random features do, and more than those of another layer; it
    changes the rest no more than the bounds."""
    DAMAGING = "damaging"
    """It changes the rest by more than a bound, or makes it overflow, whatever it does to its targets."""
    UNSPECIFIC = "unspecific"
    """Random features of its layer do as much, and the test would have seen an effect that matters."""
    INEFFECTIVE = "ineffective"
    """It changes a target by less than what matters."""
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceItem:
    """A question with answers to choose from; the model's choice is the likeliest."""

    prompt: str
    choices: tuple[str, ...]
    """At least two; each follows the prompt as it stands."""
    answer: int
    """Index of the choice whose log-odds are the behaviour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """Texts, or items, of one role."""

    name: str
    role: SetRole
    texts: tuple[str, ...] = ()
    items: tuple[ChoiceItem, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.texts) == bool(self.items):
            raise InvalidRequestError(
                f"the set {self.name} needs texts or items, and not both; one of each kind makes two sets",
                field="texts",
            )
        require_enough(self.name, len(self))
        for index, item in enumerate(self.items):
            if len(item.choices) < 2 or not 0 <= item.answer < len(item.choices):
                raise InvalidRequestError(
                    "an item needs at least two choices, and an answer among them", field=f"items[{index}]"
                )

    def __len__(self) -> int:
        return len(self.texts) or len(self.items)


def require_enough(name: str, units: int, *, kind: str = "texts or items") -> None:
    """Refuse a set with which nothing could be decided.

    Raises:
        TooFewItemsError: Saying how many are needed.
    """
    if units < FEWEST_UNITS:
        raise TooFewItemsError(
            f"the set {name} has {units} {kind}; an interval needs at least {FEWEST_UNITS}",
            field="texts",
            needed=FEWEST_UNITS,
            got=units,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureControls:
    """How controls are drawn."""

    sets: int = FEWEST_CONTROLS
    """Random sets; p = (1 + #{|control| >= |effect|}) / (sets + 1)."""
    wrong_layer_sets: int = 19
    factor: float = 2.0
    """Frequency and size of a control within this factor; widened up to twice if there are too few."""
    tokens: int = 256
    """About as many tokens of every target set are run with every control; the edit is compared on them."""
    retain_tokens: int | None = None
    """The same of every retain set, of which texts are cut; 0: none is. None: as many as `tokens`."""

    def __post_init__(self) -> None:
        require_finite("controls.factor", self.factor)
        if self.sets < 1 or self.wrong_layer_sets < 0 or self.tokens < 1 or self.factor <= 1:
            raise InvalidRequestError(
                "controls need at least one set, a factor above 1 and at least one token", field="controls"
            )
        if self.of_retain < 0:
            raise InvalidRequestError(
                "retain_tokens must be at least 0; 0 runs no control on retain sets",
                field="controls.retain_tokens",
            )

    @property
    def of_retain(self) -> int:
        """Tokens of every retain set that are run with every control; 0: none."""
        return self.tokens if self.retain_tokens is None else self.retain_tokens

    @property
    def retain_cut(self) -> int:
        """Tokens to which texts of retain sets are cut, so that the tokens are of several texts."""
        return max(RETAIN_CUT_TOKENS, self.of_retain // FEWEST_UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationBounds:
    """What counts as an effect, and what as damage."""

    min_log_odds: float = 0.5
    """Smallest change of a target's mean log-odds that matters, nats."""
    min_kl: float = 0.01
    """Smallest KL on target texts that matters, nats per token."""
    max_retain_kl: float = 0.1
    """Nats per token."""
    max_accuracy_drop: float = 0.05

    def __post_init__(self) -> None:
        bounds = (self.min_log_odds, self.min_kl, self.max_retain_kl, self.max_accuracy_drop)
        require_finite("bounds", *bounds)
        if min(bounds) <= 0:
            raise InvalidRequestError("every bound must be above 0", field="bounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptingOptions:
    """Which prompts an edit is compared with."""

    prompts: tuple[str, ...] = ()
    """Put in front of every text and item as they stand."""
    shots: tuple[int, ...] = (1, 2, 4)
    """Beside them: so many solved items, or texts, of the target sets. Never the one that is asked."""
    always: bool = False
    """Also for an edit that only removes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm on one set."""

    arm: EvaluationArm
    figures: tuple[Figure, ...]
    """Texts: `kl` (nats per token), `perplexity_ratio`, `top1_agreement`, over positions >= 1 and with the
    plain model as reference. Items: `kl` and `top1_agreement` at the answer, `accuracy`,
    `accuracy_change`, `log_odds`, `log_odds_change`. Intervals of 95 % over texts or items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlComparison:
    """The edit beside other features, on the very same units of a set."""

    arm: EvaluationArm
    statistic: str
    """Of target sets `log_odds_change` or `kl`; of retain sets `kl`, `top1_agreement`, and with texts
    `perplexity_ratio`, with items `accuracy_change`."""
    effect: float
    """The edit's, on the same units."""
    values: tuple[float, ...]
    """Of every control set."""
    p_value: float
    """(1 + `reached`) / (sets that act + 1) (Davison and Hinkley 1997)."""
    adjusted_p_value: float
    """After Holm over the sets of the role: for whoever picks one set out of several. The word needs every
    target set, so that none is picked, and asks `p_value` (Berger 1982)."""
    units: int
    tokens: int = 0
    """Of all rows; texts of retain sets are cut. 0: not kept, the record is an older one."""

    @property
    def reached(self) -> int:
        """How many control sets do as much as the edit, or more."""
        return reached(self.statistic, self.effect, self.values)

    @property
    def silent(self) -> int:
        """How many control sets change nothing on these units: features of sets are silent on most texts."""
        return len(self.values) - len(acting(self.statistic, self.values))

    @property
    def beside(self) -> int:
        """How many control sets `p_value` is beside: those that act, or all where the edit does not."""
        if not acting(self.statistic, [self.effect]):
            return len(self.values)
        return len(self.values) - self.silent

    @property
    def finite_values(self) -> tuple[float, ...]:
        """Of the control sets whose answers do not overflow; no other stands beside the edit."""
        return tuple(value for value in self.values if isfinite(value))

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Of `finite_values` at `QUANTILES`, linear between neighbours; none of no values.

        NaN where there are values, and all of them overflow.
        """
        ascending = sorted(self.finite_values)
        if not ascending:
            return (nan,) * len(QUANTILES) if self.values else ()
        return tuple(_quantile(ascending, level) for level in QUANTILES)


def _quantile(ascending: Sequence[float], level: float) -> float:
    place = level * (len(ascending) - 1)
    below, above = ascending[floor(place)], ascending[ceil(place)]
    return below + (place - floor(place)) * (above - below)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """Everything about one set."""

    name: str
    role: SetRole
    units: int
    """Texts or items that differ as tokens: repeats count once."""
    tokens: int
    sha256: str
    """Of texts and items as given."""
    arms: tuple[ArmResult, ...]
    controls: tuple[ControlComparison, ...] = ()

    def arm(self, arm: EvaluationArm) -> ArmResult | None:
        """Return one arm, if it was run here."""
        return next((one for one in self.arms if one.arm is arm), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMatching:
    """How the controls were matched."""

    matched: int
    """Targets of interventions that have controls."""
    unmatched: tuple[UnmatchedFeature, ...]
    """Those without; an edit of which a part has no control is not called specific."""
    factor: float
    """Within which frequency and size lie."""
    wrong_layer_factor: float
    """The same in the other layers; 0: no control there."""
    wrong_layers: tuple[str, ...]
    """`SET:12 -> 27`, per layer."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCandidate:
    """A prompt that was tried."""

    label: str
    """`given 1`, `4 examples`."""
    tokens: int
    behaviour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptingResult:
    """The edit beside a prompt at the same behaviour."""

    candidates: tuple[PromptCandidate, ...]
    chosen: str
    """Label of the prompt whose behaviour is nearest to the edit's; empty: none goes the edit's way."""
    plain_behaviour: float
    """Mean log-odds of the answers, or mean log-probability per token of the texts, nats."""
    edit_behaviour: float
    strength: float | None
    """Of the edit, at which its behaviour is the prompt's; None: there is none."""
    differences: tuple[Figure, ...]
    """Damage of the prompt less that of the edit at that strength, one per retain set."""
    standing: Standing
    """Whether the edit does less damage."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditEvaluation:
    """Effect, damage, controls and the word for them."""

    edit: str
    """Name."""
    version: int
    content_hash: str
    verdict: EditVerdict
    why: str
    would_decide: str
    """What it would take; empty unless inconclusive."""
    sets: tuple[SetResult, ...]
    matching: ControlMatching
    prompting: PromptingResult | None
    applied: tuple[Applied, ...]
    """Over all texts and items, per intervention."""
    bounds: EvaluationBounds
    caveats: tuple[str, ...]
    resamples: int
    seed: int
    seconds: float
    model: str
    weight_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateEdit(Command[EditEvaluation, Progress]):
    """Measure an edit beside its controls."""

    interactive: ClassVar[bool] = False

    edit: Edit
    sets: tuple[EvaluationSet, ...]
    """At least one target set. Without a retain set the built-in text is one."""
    controls: FeatureControls = field(default_factory=FeatureControls)
    bounds: EvaluationBounds = field(default_factory=EvaluationBounds)
    prompting: PromptingOptions | None = field(default_factory=PromptingOptions)
    """None: no prompt is tried."""
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not any(one.role is SetRole.TARGET for one in self.sets):
            raise InvalidRequestError("at least one target set is needed", field="sets")
        names = [one.name for one in self.sets]
        if len(set(names)) < len(names):
            raise InvalidRequestError("every set needs a name of its own", field="sets")
        if self.resamples < 100:
            raise InvalidRequestError("an interval needs at least 100 resamples", field="resamples")
