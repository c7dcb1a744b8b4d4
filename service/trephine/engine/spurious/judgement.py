"""Judges of features: what part of a feature's say in the decision goes with the attribute, not the label.

All work on contributions `(n_texts, n_features)` to one decision, in logits (second label less first), so
that "tells labels apart" and "tells attributes apart" have one unit. A feature's confounded separation
T = E[c | label 1] - E[c | label 0] in the ambiguous set is the label's part plus `pairing` times the
attribute's part; the attribute's part is what each judge estimates where the two come apart. P-values are of
an attribute's part of nothing, and hold with eight texts (`tails`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.spurious_removal import Judge, JudgeEvidence, JudgingRules, Standing
from trephine.domain.spurious_texts import FEWEST_JUDGED
from trephine.engine.spurious.tails import contrast_tail, variances

FEWEST = FEWEST_JUDGED
"""Texts of a group, pairs, or texts of a label in an environment, below which a judge is silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """One judge on all features, float64 `(n_features,)` each."""

    judge: Judge
    attribute_effect: Tensor
    label_effect: Tensor
    share: Tensor
    p_value: Tensor
    """Two-sided."""

    def evidence(self, place: int, rules: JudgingRules, adjusted: Tensor) -> JudgeEvidence:
        """Word one feature's part."""
        return JudgeEvidence(
            judge=self.judge,
            share=float(self.share[place]),
            attribute_effect=float(self.attribute_effect[place]),
            label_effect=float(self.label_effect[place]),
            p_value=float(self.p_value[place]),
            standing=self._standing(place, rules, adjusted),
        )

    def _standing(self, place: int, rules: JudgingRules, adjusted: Tensor) -> Standing:
        if adjusted[place] <= rules.false_discoveries and self.share[place] >= rules.spurious_above:
            return Standing.SPURIOUS
        if self.share[place] <= rules.task_below:
            return Standing.TASK
        return Standing.UNDECIDED


def separation(contributions: Tensor, labels: Tensor) -> Tensor:
    """Return T, float64 `(n_features,)`: mean over the second label less mean over the first."""
    wide = contributions.double()
    return wide[labels == 1].mean(0) - wide[labels == 0].mean(0)


def by_examples(confounded: Tensor, pairing: float, contributions: Tensor, attributes: Tensor) -> Verdicts:
    """Judge by examples of the attribute whose labels do not matter.

    Args:
        confounded: T, `(n_features,)`.
        pairing: How far the attribute goes with the label where T was measured.
        contributions: `(n_texts, n_features)` of the examples.
        attributes: 0 or 1.
    """
    wide = contributions.double()
    sides = [wide[attributes == 1], wide[attributes == 0]]
    effect = sides[0].mean(0) - sides[1].mean(0)
    p = contrast_tail(sides, (1, -1))
    return _verdicts(Judge.ATTRIBUTE_EXAMPLES, effect, confounded - pairing * effect, p)


def by_counterfactuals(
    confounded: Tensor, pairing: float, originals: Tensor, twins: Tensor, attributes: Tensor
) -> Verdicts:
    """Judge by edits that change the attribute alone.

    Args:
        confounded: T, `(n_features,)`.
        pairing: As in `by_examples`.
        originals: Contributions `(n_pairs, n_features)` of the texts.
        twins: The same of their twins.
        attributes: 0 or 1, of the originals; the label where it is unknown, which is what it goes with.
    """
    sign = (2 * attributes - 1).double()[:, None]
    change = sign * (originals.double() - twins.double())
    effect = change.mean(0)
    p = contrast_tail([change], (1,))
    return _verdicts(Judge.COUNTERFACTUALS, effect, confounded - pairing * effect, p)


def by_groups(contributions: Tensor, labels: Tensor, attributes: Tensor) -> Verdicts:
    """Judge by labelled texts of all four groups, two or more of each: least squares on label and attribute.

    The attribute's coefficient is a weighted sum of the groups' means, which are not taken to vary alike.
    """
    design = torch.stack([torch.ones(len(labels)), labels.float(), attributes.float()], 1).double()
    weights = torch.linalg.inv(design.T @ design) @ design.T  # (3, n_texts)
    wide = contributions.double()
    found = weights @ wide  # (3, n_features)
    inside = [(labels == y) & (attributes == a) for y in (0, 1) for a in (0, 1)]
    p = contrast_tail([wide[rows] for rows in inside], [float(weights[2, rows].sum()) for rows in inside])
    return _verdicts(Judge.GROUPS, found[2], found[1], p)


def by_invariance(
    judge: Judge, contributions: Tensor, labels: Tensor, environments: Tensor
) -> Verdicts | None:
    """Judge by whether T is the same everywhere: a random-effects model over environments.

    The spread of the true effects is DerSimonian and Laird's tau. Its p-value is the smallest over
    environments of "T is not that of the others" (their mean), times how many there are: Cochran's Q, whose
    tail takes variances for known, calls noise unstable where an environment has few texts.

    Args:
        judge: Environments or clusters.
        contributions: `(n_texts, n_features)` of the ambiguous set.
        labels: 0 or 1.
        environments: Number of each text's environment; -1 leaves it out.

    Returns:
        None if fewer than two environments have enough texts of both labels.
    """
    cells = list[Tensor]()  # of the second label and of the first, environment by environment
    for number in environments.unique().tolist():
        inside = environments == number
        one = contributions[inside & (labels == 1)].double()
        other = contributions[inside & (labels == 0)].double()
        if number >= 0 and min(len(one), len(other)) >= FEWEST:
            cells += [one, other]
    count = len(cells) // 2
    if count < 2:
        return None
    means = torch.stack([cell.mean(0) for cell in cells])
    errors = variances(cells) / torch.tensor([[len(cell)] for cell in cells])
    effect = means[::2] - means[1::2]  # (n_environments, n_features)
    weight = 1 / (errors[::2] + errors[1::2]).clamp_min(1e-24)
    total = weight.sum(0)
    mean = (weight * effect).sum(0) / total
    q = (weight * (effect - mean).square()).sum(0)
    spread = (q - (count - 1)) / (total - weight.square().sum(0) / total).clamp_min(1e-24)
    return _verdicts(judge, spread.clamp_min(0).sqrt(), mean, _unlike_others(cells, count))


def _unlike_others(cells: Sequence[Tensor], count: int) -> Tensor:
    """Smallest p-value of an environment against the mean of the others, Bonferroni's, `(n_features,)`.

    Two environments are one comparison.
    """
    found = []
    for number in range(1 if count == 2 else count):
        sides = [1.0 if place == number else -1 / (count - 1) for place in range(count)]
        found.append(contrast_tail(cells, [sign * side for side in sides for sign in (1, -1)]))
    return (torch.stack(found).amin(0) * len(found)).clamp_max(1.0)


def _verdicts(judge: Judge, effect: Tensor, label: Tensor, p: Tensor) -> Verdicts:
    return Verdicts(
        judge=judge, attribute_effect=effect, label_effect=label, share=_share(effect, label), p_value=p
    )


def _share(attribute: Tensor, label: Tensor) -> Tensor:
    total = attribute.abs() + label.abs()
    return torch.where(total > 0, attribute.abs() / total.clamp_min(1e-300), 0.5)


def combined(evidence: tuple[JudgeEvidence, ...]) -> tuple[Standing, float, str]:
    """Put judges together: spurious if one says so and none says task; doubt is undecided.

    Returns:
        Standing, score and reason.
    """
    if not evidence:
        return Standing.UNDECIDED, 0.5, "no judge could say anything"
    said = {one.standing for one in evidence}
    score = max(one.share for one in evidence)
    names = ", ".join(f"{one.judge.value.replace('_', ' ')} {one.share:.2f}" for one in evidence)
    if Standing.SPURIOUS in said and Standing.TASK in said:
        return Standing.UNDECIDED, score, f"the judges disagree ({names})"
    if Standing.SPURIOUS in said:
        return Standing.SPURIOUS, score, f"it goes with the attribute ({names})"
    if said == {Standing.TASK}:
        return Standing.TASK, score, f"it goes with the label ({names})"
    return Standing.UNDECIDED, score, f"neither is clear ({names})"
