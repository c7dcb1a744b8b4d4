"""Removing spurious features from a decision, with no person in the loop (SHIFT; Marks et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from trephine.domain.commands import Command, Progress
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Intervention, require_finite
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_arms import Arm, ArmOutcome, BenchScores, shipped
from trephine.domain.spurious_digests import texts_digest
from trephine.domain.spurious_heads import DecisionHead, HeadWeights, ProbeHead, RewardHead, TokenHead
from trephine.domain.spurious_options import DEFAULT_STEPS, check_estimator, check_layers, check_neutral
from trephine.domain.spurious_outcomes import RemovalOutcome, unmeasured
from trephine.domain.spurious_pairs import check_pairs
from trephine.domain.spurious_texts import (
    FEWEST_TEXTS,
    AttributeText,
    LabelledText,
    Splits,
    Swap,
    check_attributes,
    check_leakage,
    check_told_apart,
    check_twins,
    labels_of,
)

MAX_TEXTS = 16_384
"""Of one request, all splits together."""
MAX_CANDIDATES = 16_384
"""Each has its evidence in the report: with every judge that is 16 MB between engine and server, of 32."""

# --- what is given -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingRules:
    """When a feature is called spurious, and when we abstain."""

    spurious_above: float = 0.5
    """Smallest share of the attribute in what the feature does to the decision."""
    task_below: float = 0.25
    """Largest share of a feature of the task."""
    false_discoveries: float = 0.05
    """Rate among the features called spurious (Benjamini and Hochberg over the finalists)."""
    clusters: int = 4
    """Of the ambiguous set where nothing is known of the attribute; 1 judges nothing."""

    def __post_init__(self) -> None:
        require_finite("judging", self.spurious_above, self.task_below, self.false_discoveries)
        _check(
            0 <= self.task_below < self.spurious_above <= 1,
            "judging",
            "needs 0 <= task_below < spurious_above <= 1",
        )
        _check(0 < self.false_discoveries < 1, "judging.false_discoveries", "must be between 0 and 1")
        _check(1 <= self.clusters <= 32, "judging.clusters", "must be 1 to 32")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalBudget:
    """How much is looked at, and how much may go."""

    candidates: int = 2048
    """Features of largest estimated effect that are judged."""
    exact: int = 32
    """Of these, how many are also ablated one at a time."""
    counts: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 500)
    """Numbers of removed features that are tried on the validation split (SAEBench's, and 1)."""
    effect_texts: int = 256
    """Texts of a kind that effects are estimated on."""
    fit_texts: int = 1024
    """Texts of the ambiguous set that heads are trained on while they are compared; no ceiling for the final
    one, which is trained on what is held out of that set as well."""
    random_sets: int = 3
    """Size- and layer-matched random feature sets beside the removed one; 0 draws none."""

    def __post_init__(self) -> None:
        most = f"must be 1 to {MAX_CANDIDATES}: of more no report could be answered"
        _check(1 <= self.candidates <= MAX_CANDIDATES, "budget.candidates", most)
        _check(0 <= self.exact <= 4096, "budget.exact", "must be 0 to 4096")
        ascending = tuple(sorted(set(self.counts)))
        _check(bool(self.counts) and ascending == self.counts, "budget.counts", "must ascend, and hold one")
        _check(self.counts[0] >= 1, "budget.counts", "must start at 1 or above")
        _check(self.effect_texts >= FEWEST_TEXTS, "budget.effect_texts", f"must be at least {FEWEST_TEXTS}")
        _check(self.fit_texts >= 2 * FEWEST_TEXTS, "budget.fit_texts", f"must be at least {2 * FEWEST_TEXTS}")
        _check(0 <= self.random_sets <= 100, "budget.random_sets", "must be 0 to 100")


class Standing(StrEnum):
    """What a feature is to the decision. Doubt is UNDECIDED, and nothing undecided is removed."""

    SPURIOUS = "spurious"
    TASK = "task"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A person's word on a feature; it stands above ours."""

    feature: FeatureRef
    remove: bool
    reason: str

    def __post_init__(self) -> None:
        _check(bool(self.reason.strip()), "overrides.reason", "must say why")


# --- what is found -------------------------------------------------------------------------------


class Judge(StrEnum):
    """What a decision rests on."""

    ATTRIBUTE_EXAMPLES = "attribute_examples"
    """What the feature adds to the decision where only the attribute differs, by examples of it."""
    COUNTERFACTUALS = "counterfactuals"
    """What it adds to the change of the decision when the attribute is edited and the label is not."""
    GROUPS = "groups"
    """The same by labelled texts whose attribute does not follow the label."""
    ENVIRONMENTS = "environments"
    """Whether its effect is the same in every given environment."""
    CLUSTERS = "clusters"
    """The same over clusters of the ambiguous set. The weakest: it cannot know what the task is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeEvidence:
    """One judge on one feature. Effects are in logits of the decision (second label less first)."""

    judge: Judge
    share: float
    """Of the attribute, or of what is unstable, in the feature's effect: 0 to 1."""
    attribute_effect: float
    """By how much it moves the decision with the attribute; of invariance judges: spread of its effect."""
    label_effect: float
    """By how much it moves it with the label, the attribute apart; of invariance judges: mean effect."""
    p_value: float
    """That the attribute effect (or the instability) is nothing."""
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """A place where the feature is most active."""

    text: str
    """Up to 12 tokens before it, and itself."""
    token: str
    activation: float
    label: str
    attribute: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFeature:
    """A feature with its decision and the evidence for it."""

    feature: FeatureRef
    standing: Standing
    score: float
    """Largest share over the judges; 0.5 where none could say anything."""
    why: str
    effect: float
    """Estimated part in the decision on the ambiguous set: how far it tells the labels apart, logits."""
    exact: float | None
    """The same by ablating it alone; None: not measured."""
    attribute_probe: float | None
    """Its part in a probe of the attribute at the same site, logits; None: no probe could be trained."""
    evidence: tuple[JudgeEvidence, ...]
    firings: tuple[Firing, ...]
    override: str
    """A person's reason; empty: none."""
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePoint:
    """The head on the validation split with so many features removed."""

    count: int
    criterion: float
    ambiguous_accuracy: float
    """On held-out texts of the ambiguous set, or of the validation split."""
    leak: float | None
    """By how much the decision follows the attribute, 0 to 1; None: nothing is known of it."""
    erased: bool = False
    """With the head that was trained without the attribute."""
    error: float = 0.0
    """Standard error of the criterion, of shares or bits; 0 in reports from before it was measured."""
    taken: bool = False
    trained: bool | None = None
    """The head was trained again; None: a report from before it was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalOptions:
    """What was asked for beside what the report tells elsewhere: with the same texts it can be made again."""

    layers: tuple[int, ...] | None
    """None: all that the set covers, up to the head's site."""
    steps: int | None
    judging: JudgingRules
    budget: RemovalBudget
    refit: bool
    erase: bool
    neutral_examples: bool
    attribute_name: str
    swaps: tuple[Swap, ...]
    resamples: int
    texts_sha256: str
    """Of all texts, see `texts_digest`."""


_UNTOLD = unmeasured("this report is from before outcomes were told", "running it again")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpuriousRemoval:
    """The report: what decides, what was judged, what was removed, and what came of it."""

    labels: tuple[str, str]
    attributes: tuple[str, ...]
    """Two, in the order in which they go with the labels; or none."""
    pairing: str
    """How label and attribute go together in the ambiguous set, in words."""
    decision: DecisionHead
    replacement: str
    estimator: Estimator
    judges: tuple[Judge, ...]
    considered: int
    """Features that there are."""
    features: tuple[JudgedFeature, ...]
    """Every finalist: those that a person named, then removed ones, then spurious, undecided, task; of each
    the largest first: of spurious ones by attribute effect, of others by effect on the decision."""
    choices: tuple[ChoicePoint, ...]
    criterion: str
    """What was chosen by, in words."""
    chosen: int
    """Features removed; 0: nothing was."""
    why: str
    arms: tuple[ArmOutcome, ...]
    scores: BenchScores
    interventions: tuple[Intervention, ...]
    """What the edit does; empty if nothing was removed."""
    head: HeadWeights
    """As it decides in the end."""
    original_head: HeadWeights
    texts: tuple[int, int, int]
    """Training, validation, test; rows that say the same count once."""
    caveats: tuple[str, ...]
    seconds: float
    model: str
    weight_hash: str
    seed: int
    outcome: RemovalOutcome = _UNTOLD
    set_hash: str = ""
    """Content of the set whose features these are; empty: neurons, or a report from before it was kept."""
    options: RemovalOptions | None = None
    """None: a report from before they were kept."""

    @property
    def ships(self) -> Arm:
        """The arm that is shipped; the original where nothing was removed."""
        return shipped(self.arms)

    def arm(self, arm: Arm) -> ArmOutcome | None:
        """Return an arm, if it was run."""
        return next((one for one in self.arms if one.arm is arm), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSpuriousFeatures(Command[SpuriousRemoval, Progress]):
    """Find what a decision rests on, judge it, remove what is spurious, and measure what that does."""

    interactive: ClassVar[bool] = False

    training: tuple[LabelledText, ...]
    """The ambiguous set: label and attribute may go together in all of it."""
    validation: tuple[LabelledText, ...] = ()
    """Chooses how many are removed. None: a fifth of the ambiguous set is held out for it."""
    test: tuple[LabelledText, ...] = ()
    """Seen by nothing but the report; best balanced in label and attribute."""
    attribute_texts: tuple[AttributeText, ...] = ()
    neutral_examples: bool = False
    """The attribute's texts hold neither label, so that what varies among them is none of the label's."""
    attribute_name: str = ""
    """`gender`: a lexicon of swaps is built in."""
    swaps: tuple[Swap, ...] = ()
    """A lexicon of one's own."""
    decision: DecisionHead = field(default_factory=ProbeHead)
    replacement: str = NEURONS
    layers: tuple[int, ...] | None = None
    """Layers whose features may be removed; None: all that the set covers, up to the head's site."""
    estimator: Estimator = Estimator.ATTRIBUTION_PATCHING
    steps: int | None = None
    """Of integrated gradients; None: `DEFAULT_STEPS`."""
    judging: JudgingRules = field(default_factory=JudgingRules)
    budget: RemovalBudget = field(default_factory=RemovalBudget)
    refit: bool = True
    """Train the head again after the removal; only of a head that is linear and ours to change."""
    erase: bool = True
    """Where removal alone leaves the decision following the attribute, and something tells the attribute
    from the label, train the head with no weight along the attribute."""
    overrides: tuple[Override, ...] = ()
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_estimator(self.estimator, self.steps)
        check_layers(self.layers, self.decision)
        _check(10 <= self.resamples <= 100_000, "resamples", "must be 10 to 100000")
        if isinstance(self.decision, TokenHead | RewardHead) and self.refit:
            what = "label tokens are" if isinstance(self.decision, TokenHead) else "a reward is"
            raise InvalidRequestError(
                f"refit: {what} not trained here; ask for no refit (--no-refit, refit=False, without_refit)",
                field="without_refit",
            )
        if self.neutral_examples:
            check_neutral(told=bool(self.attribute_texts), trained=self.erase and self.refit)
        _check(
            not (self.attribute_name and self.swaps),
            "attribute_name",
            "names a built-in lexicon, and swaps are another; leave one of the two out",
        )
        total = len(self.training) + len(self.validation) + len(self.test)
        _check(
            total <= MAX_TEXTS, "training", f"and the other splits hold {total} texts; at most {MAX_TEXTS}"
        )
        splits, _ = self.splits, self.labels
        check_twins(splits)
        check_leakage(splits, self.attribute_texts)
        check_pairs(splits, trained=isinstance(self.decision, ProbeHead) and self.decision.pairs)
        check_attributes(splits, self.attribute_texts)
        if not (self.attribute_texts or self.attribute_name or self.swaps):
            check_told_apart(self.training, self.validation)
        features = [one.feature for one in self.overrides]
        _check(len(set(features)) == len(features), "overrides", "name a feature twice")

    @property
    def options(self) -> RemovalOptions:
        """What a report says that it was asked for, beside its texts, decision, set, estimator and words."""
        integrated = self.estimator is Estimator.INTEGRATED_GRADIENTS
        return RemovalOptions(
            layers=self.layers,
            steps=self.gradient_steps if integrated else None,
            judging=self.judging,
            budget=self.budget,
            refit=self.refit,
            erase=self.erase,
            neutral_examples=self.neutral_examples,
            attribute_name=self.attribute_name,
            swaps=self.swaps,
            resamples=self.resamples,
            texts_sha256=texts_digest(self.splits, self.attribute_texts),
        )

    @property
    def gradient_steps(self) -> int:
        """Steps of integrated gradients, where they are asked for."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @property
    def splits(self) -> Splits:
        """The three splits by name."""
        return {"training": self.training, "validation": self.validation, "test": self.test}

    @property
    def labels(self) -> tuple[str, str]:
        """The two labels: sorted, in the order of the label tokens, or a reward's positive one last."""
        decision = self.decision
        named = [one.label for one in decision.tokens] if isinstance(decision, TokenHead) else None
        found = labels_of(self.splits, named)
        return decision.ordered(found) if isinstance(decision, RewardHead) else found


def _check(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise InvalidRequestError(f"{name} {what}", field=name)
