"""A report on a decision, made by hand."""

from __future__ import annotations

from trephine.domain.dataset_circuits import Estimator
from trephine.domain.findings import Figure
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm, ArmOutcome, BenchScores
from trephine.domain.spurious_heads import HeadWeights, Pooling, ProbeHead
from trephine.domain.spurious_outcomes import Ground, Tally, outcome_on
from trephine.domain.spurious_removal import (
    ChoicePoint,
    Firing,
    Judge,
    JudgedFeature,
    JudgeEvidence,
    SpuriousRemoval,
    Standing,
)

GONE = FeatureRef(layer=3, index=17)


def judged(standing: Standing, index: int, *, removed: bool = False, override: str = "") -> JudgedFeature:
    """A feature with one judge's evidence and one place."""
    said = JudgeEvidence(
        judge=Judge.ATTRIBUTE_EXAMPLES,
        share=0.875,
        attribute_effect=0.5,
        label_effect=-0.25,
        p_value=0.001,
        standing=standing,
    )
    firing = Firing(text="then <b>she", token="<b>she", activation=2.5, label="nurse", attribute=None)
    return JudgedFeature(
        feature=FeatureRef(layer=3, index=index),
        standing=standing,
        score=0.875,
        why="it goes with the attribute",
        effect=0.75,
        exact=None,
        attribute_probe=0.125,
        evidence=(said,),
        firings=(firing,),
        override=override,
        removed=removed,
    )


def head() -> HeadWeights:
    """In the stock form."""
    return HeadWeights(
        labels=("nurse", "physician"),
        weight=((-0.5, 0.25), (0.5, -0.25)),
        bias=(0.0, 0.0),
        layer=None,
        pooling=Pooling.LAST,
    )


def report() -> SpuriousRemoval:
    """One feature removed, one undecided, one overridden."""
    worst = Figure(name="worst_group", value=0.125, low=0.0625, high=0.25, unit="share")
    better = Figure(name="worst_group", value=0.9, low=0.85, high=0.95, unit="share")
    return SpuriousRemoval(
        labels=("nurse", "physician"),
        attributes=("female", "male"),
        pairing="nurse with female, physician with male",
        decision=ProbeHead(),
        replacement="neurons",
        estimator=Estimator.RELP,
        judges=(Judge.ATTRIBUTE_EXAMPLES,),
        considered=1000,
        features=(
            judged(Standing.SPURIOUS, GONE.index, removed=True),
            judged(Standing.UNDECIDED, 18),
            judged(Standing.TASK, 19, override="it is <i>medicine</i>"),
        ),
        choices=(
            ChoicePoint(count=0, criterion=0.1, ambiguous_accuracy=0.98, leak=0.75),
            ChoicePoint(count=1, criterion=0.8, ambiguous_accuracy=0.9, leak=None, taken=True),
        ),
        criterion="the worst group",
        chosen=1,
        why="removing the strongest helps",
        arms=(
            ArmOutcome(arm=Arm.ORIGINAL, figures=(worst,)),
            ArmOutcome(arm=Arm.REFITTED, figures=(better,)),
        ),
        scores=BenchScores(scr=0.625, tpp=None),
        interventions=(Intervention(target=FeatureTarget(feature=GONE), operation=Ablate()),),
        head=head(),
        original_head=head(),
        texts=(80, 20, 48),
        caveats=("nothing is sure",),
        seconds=1.5,
        model="tiny",
        weight_hash="ab" * 32,
        seed=7,
        outcome=outcome_on(
            Ground.TEST,
            (
                Tally(name="nurse/male", texts=200, before=25, after=180),
                Tally(name="physician/male", texts=240, before=240, after=238),
            ),
        ),
    )
