from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.audits import Verdict
from trephine.client.types.common import FeatureRef, Figure, Version
from trephine.client.types.dataset_circuits import EffectEstimator
from trephine.client.types.edits import ExportedFile
from trephine.client.types.interventions import Intervention


class TextPooling(StrEnum):
    """How a text's activations become one vector."""

    UNSPECIFIED = "unspecified"
    LAST = "last"
    MEAN = "mean"


class FeatureStanding(StrEnum):
    """What a feature is to a decision. Nothing undecided is removed."""

    UNSPECIFIED = "unspecified"
    SPURIOUS = "spurious"
    TASK = "task"
    UNDECIDED = "undecided"


class FeatureJudge(StrEnum):
    """What a decision on a feature rests on."""

    UNSPECIFIED = "unspecified"
    ATTRIBUTE_EXAMPLES = "attribute_examples"
    COUNTERFACTUALS = "counterfactuals"
    GROUPS = "groups"
    ENVIRONMENTS = "environments"
    CLUSTERS = "clusters"


class RemovalArm(StrEnum):
    """What was measured."""

    UNSPECIFIED = "unspecified"
    ORIGINAL = "original"
    REMOVED = "removed"
    REFITTED = "refitted"
    ERASED = "erased"
    ERASED_ALONE = "erased_alone"
    RANDOM = "random"
    RANDOM_REFITTED = "random_refitted"
    LEACE = "leace"
    INLP = "inlp"
    TOKEN_DELETION = "token_deletion"  # noqa: S105  of text, not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText:
    """A text of the task."""

    text: str
    label: str
    attribute: str | None = None
    """The spurious attribute, where it is known."""
    twin: str | None = None
    """The same text with the other attribute and the same label."""
    environment: str | None = None
    """Where it comes from: the task holds in every environment, a shortcut need not."""
    pair: str | None = None
    """The comparison that it stands in, with one text of the other label in the same split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeText:
    """An example of the spurious attribute, of whatever label, or none."""

    text: str
    attribute: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A logistic regression that the server trains on the ambiguous set, or on its pairs."""

    layer: int | None = None
    """None: the final norm's output, the stock form, which can be exported."""
    pooling: TextPooling | str = TextPooling.LAST
    penalty: float | None = None
    """L2 on the weights of standardised inputs; None: 0.01."""
    pairs: bool = False
    """Trained on differences within pairs (Bradley and Terry); every ambiguous text needs one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTokens:
    """The language model itself: which label's token comes next."""

    tokens: dict[str, str]
    """Label to one token (mind the leading space), or `#id`."""
    template: str = "{text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StockClassifier:
    """The head of a stock sequence classifier on the loaded model."""

    source: str
    """A model of the server, by name or folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """The same with one output, a reward."""

    source: str
    positive_label: str
    """That a high reward stands for."""
    threshold: float | None = None
    """Above it is the positive label; None: the most accurate one on the ambiguous set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOverride:
    """A person's word on a feature."""

    feature: FeatureRef
    remove: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHead(WireValue):
    """A probe that decided."""

    layer: int | None
    pooling: TextPooling
    penalty: float | None
    pairs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelToken(WireValue):
    """The next token that stood for a label."""

    label: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHead(WireValue):
    """The language model itself, that decided."""

    tokens: tuple[LabelToken, ...]
    template: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierHead(WireValue):
    """A given classifier that decided."""

    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardHead(WireValue):
    """A given reward that decided."""

    source: str
    threshold: float | None
    positive_label: str
    """That a high reward stood for; empty in older reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionHead(WireValue):
    """What decided; one of these."""

    probe: ProbeHead | None
    tokens: TokenHead | None
    classifier: ClassifierHead | None
    reward: RewardHead | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeEvidence(WireValue):
    """One judge on one feature; effects are logits of the decision."""

    judge: FeatureJudge
    share: float
    attribute_effect: float
    label_effect: float
    p_value: float
    standing: FeatureStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFiring(WireValue):
    """A place where a feature is most active."""

    text: str
    token: str
    activation: float
    label: str
    attribute: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFeature(WireValue):
    """A feature with its decision and the evidence for it."""

    feature: FeatureRef
    standing: FeatureStanding
    score: float
    """Largest share of the attribute over the judges."""
    why: str
    effect: float
    """How far it tells the labels apart in the ambiguous set, logits, estimated."""
    exact: float | None
    attribute_probe: float | None
    evidence: tuple[JudgeEvidence, ...]
    firings: tuple[FeatureFiring, ...]
    override: str
    """A person's reason; empty: none."""
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalChoice(WireValue):
    """The head on the validation split with so many features removed."""

    count: int
    criterion: float
    ambiguous_accuracy: float
    leak: float | None
    erased: bool
    """With a head that was trained without the attribute."""
    error: float
    """Standard error of the criterion."""
    taken: bool
    """It is the one that ships."""
    trained: bool | None
    """The head was trained again; None: a report from before it was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalArmResult(WireValue):
    """One arm's figures."""

    arm: RemovalArm
    figures: tuple[Figure, ...]

    def figure(self, name: str) -> Figure | None:
        """A figure by name, if it was measured: `worst_group`, `label_accuracy`."""
        return next((one for one in self.figures if one.name == name), None)


class OutcomeGround(StrEnum):
    """Texts on which label and attribute come apart."""

    UNSPECIFIED = "unspecified"
    """A report from before outcomes were told."""
    TEST = "test"
    VALIDATION = "validation"
    TWINS = "twins"
    """Never a pass: cues that twins share are not seen."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalOutcome(WireValue):
    """Whether a removal held, and by how much."""

    verdict: Verdict
    """Pass, fail or inconclusive: doubt is never a pass."""
    ground: OutcomeGround
    texts: int
    """Of the smallest group."""
    before: Figure | None
    """Accuracy of the worst group as the original decides, under its name."""
    after: Figure | None
    """The same of what ships."""
    gain: Figure | None
    why: str
    settles: str
    """What would settle a doubt; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpuriousRemoval(WireValue):
    """What decides, what was judged, what was removed, and what came of it."""

    name: str
    edit: str
    """Resource name with version; empty: none was asked for, the removal was not shown to hold, or the edit
    could not be made, as a caveat then says."""
    labels: tuple[str, ...]
    attributes: tuple[str, ...]
    pairing: str
    decision: DecisionHead
    replacement: str
    estimator: EffectEstimator
    judges: tuple[FeatureJudge, ...]
    considered: int
    features: tuple[JudgedFeature, ...]
    """Those that a person named first, then removed ones, then spurious, undecided, task."""
    choices: tuple[RemovalChoice, ...]
    criterion: str
    chosen: int
    why: str
    arms: tuple[RemovalArmResult, ...]
    scr: float | None
    tpp: float | None
    interventions: tuple[Intervention, ...]
    texts: tuple[int, ...]
    """Training, held out, test."""
    caveats: tuple[str, ...]
    seconds: float
    peak_extra_bytes: int
    """Only of a prediction."""
    version: Version
    seed: int
    create_time: str
    outcome: RemovalOutcome
    ships: RemovalArm
    """The arm that the edit and the head are of."""

    @property
    def held(self) -> bool:
        """True if the removal was shown to hold on texts in which label and attribute come apart."""
        return self.outcome.verdict is Verdict.PASS

    def arm(self, arm: RemovalArm | str) -> RemovalArmResult | None:
        """An arm, if it was run."""
        return next((one for one in self.arms if one.arm == arm), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierExport(WireValue):
    """A published stock sequence classifier."""

    name: str
    removal: str
    export: str
    architecture: str
    labels: tuple[str, ...]
    files: dict[str, str]
    checked_texts: int
    largest_difference: float
    agreeing: int
    sizes: dict[str, int]
    """Bytes of every file."""
    threshold: float | None = None
    """Of a reward, the folder's one output: above it is the second label. None: an output per label."""

    @property
    def listed(self) -> tuple[ExportedFile, ...]:
        """The files as an export lists them."""
        return tuple(
            ExportedFile(path=path, size=self.sizes.get(path, 0), sha256=digest)
            for path, digest in self.files.items()
        )
