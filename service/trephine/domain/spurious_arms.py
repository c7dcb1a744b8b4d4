"""Arms of a removal: what was measured beside what, and SAEBench's scores of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.findings import Figure


class Arm(StrEnum):
    """What was measured."""

    ORIGINAL = "original"
    """A probe is trained on as many texts as what ships, where one does that is trained again."""
    REMOVED = "removed"
    REFITTED = "refitted"
    """Removed, and the head trained again on the same ambiguous texts."""
    ERASED = "erased"
    """Removed, and the head trained again with no weight along the attribute at its site."""
    ERASED_ALONE = "erased_alone"
    """Such a head with every feature left in place: what the features do beside it."""
    RANDOM = "random"
    """As many random features of the same layers, mean over the sets."""
    RANDOM_REFITTED = "random_refitted"
    LEACE = "leace"
    """No feature removed; the attribute erased at the head's site (Belrose et al. 2023), the head trained
    again."""
    INLP = "inlp"
    """The same by iterated projection (Ravfogel et al. 2020)."""
    TOKEN_DELETION = "token_deletion"  # noqa: S105  of text, not a secret
    """No feature removed; tokens that tell the attribute deleted from every text, the head trained again."""


BASELINES = {Arm.LEACE: "LEACE", Arm.INLP: "INLP", Arm.TOKEN_DELETION: "deleting tokens"}
"""What is done without features, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm. Shares of 1, with intervals of 95 % over texts: the wider of bootstrap and score intervals."""

    arm: Arm
    figures: tuple[Figure, ...]
    """`ambiguous_accuracy` on held-out ambiguous texts; on the test split `label_accuracy` (mean of the
    groups where the attribute is known), `attribute_agreement` (of the task prediction, by the pairing of
    the ambiguous set), `worst_group`, `group LABEL/ATTRIBUTE`; `attribute_probe` (accuracy of a fresh probe
    of the attribute), `flip_rate` (decisions that a counterfactual edit changes)."""

    def figure(self, name: str) -> Figure | None:
        """Return a figure by name, if it was measured."""
        return next((one for one in self.figures if one.name == name), None)


def shipped(arms: Sequence[ArmOutcome]) -> Arm:
    """Return the arm that ships; the original where nothing was removed."""
    run = {one.arm for one in arms}
    return next((arm for arm in (Arm.ERASED, Arm.REFITTED, Arm.REMOVED) if arm in run), Arm.ORIGINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchScores:
    """SAEBench's scores of the removed features, by its formulas."""

    scr: float | None
    """(A_removed - A_base) / (A_clean - A_base) on label accuracy; A_clean is a head trained on the balanced
    split, cross-validated; 0 if the gap is below 0.001. None: no two texts of every group."""
    tpp: float | None
    """Mean over the two concepts of what its own features cost it, less what they cost the other."""
