"""What attacks bring back of an ablated behaviour, and the word that follows: removed or suppressed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

Verdict = Literal["removed", "suppressed", "inconclusive"]
AttackKind = Literal["recovery", "benign", "few_shot"]
"""`recovery`: perturbations of the residual stream. `benign`: next-token training on natural text in which
the behaviour occurs, the harder case of natural text. `few_shot`: training on a few contexts with the
original's answers."""

RETURNED = 0.10
"""An attack succeeds if the whole interval of the excess lies above: the behaviour returned by more than this
share beyond what an unrelated behaviour does under the same attack."""
WITHSTOOD = 0.25
"""An edit withstands an attack if the whole interval of the excess lies below."""
LEAST_POWER = 0.10
"""An attack that returns less than this of unrelated behaviours at its strongest proves nothing: it is too
weak. Of perturbations that is the largest budget, of few-shot training the most steps; benign training
teaches no unrelated behaviour, and has no such measure."""
FEWEST_STEPS, MOST_STEPS = 50, 200
"""Of training, that an attack may be asked for; the fewest are the default."""
LEAST_TOKENS = 8
LEAST_CONTEXTS = 4
LEAST_EFFECT = 1e-3
"""Nats that the edit moves the answer where it acts; below it there is no behaviour to bring back."""
_ENOUGH = f"{LEAST_TOKENS} in {LEAST_CONTEXTS}: give more text of the kind that it is about"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval over contexts (and over unrelated behaviours)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFigure:
    """One attack at one strength."""

    kind: AttackKind
    strength: float
    """`recovery`: norm of the perturbation over the residual's. Others: steps of training."""
    returned: Interval
    """Share of the ablated behaviour that is back: 0 as edited, 1 as in the original."""
    unrelated: Interval
    """The same for unrelated behaviours of the same size under the same attack."""
    excess: Interval
    """`returned` less `unrelated`, paired by token."""
    unrelated_most: float | None = None
    """Mean share of the unrelated behaviour that returned most; None: attacked before this was kept."""
    unrelated_behaviours: int = 0
    """How many unrelated behaviours it is held against; 0: attacked before this was kept."""
    n_tokens: int = 0
    """Tokens that it was measured on: perturbations on those of all windows, training on those of windows
    that it did not see. 0: attacked before this was kept."""
    n_contexts: int = 0
    """Contexts that these stand in, over which its intervals are; 0: attacked before this was kept."""

    @property
    def succeeded(self) -> bool:
        """True if it brought the behaviour back beyond doubt."""
        return self.excess.low > RETURNED and not self.diverged and not self.too_narrow

    @property
    def diverged(self) -> bool:
        """True if any of it is no finite number: nothing is known of what it would have brought back."""
        intervals = (self.returned, self.unrelated, self.excess)
        numbers = [x for each in intervals for x in (each.value, each.low, each.high)]
        return not all(map(isfinite, (*numbers, self.unrelated_most or 0.0)))

    @property
    def too_narrow(self) -> bool:
        """True if its tokens are too few, or in too few contexts, for its intervals to be worth anything."""
        known = self.n_tokens > 0 and self.n_contexts > 0
        return known and (self.n_tokens < LEAST_TOKENS or self.n_contexts < LEAST_CONTEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The outcome of all attacks on an export."""

    verdict: Verdict
    why: str
    """The decision in a sentence."""
    figures: tuple[AttackFigure, ...]
    """Those that are finite numbers, so that a certificate is plain JSON."""
    n_tokens: int
    """Tokens on which training was measured; of each attack, `AttackFigure.n_tokens`."""
    n_contexts: int
    """Contexts that they stand in."""
    effect: float
    """Mean KL(original || edited) on them, nats; the largest float if it overflows."""
    unrelated_behaviours: int
    seed: int
    diverged: tuple[str, ...] = ()
    """Attacks whose figures are no numbers, in words."""
    taught: tuple[int, int] | None = None
    """Tokens that few-shot training may teach, and their contexts; None: attacked before this was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What may be said of an ablated behaviour: the word of certificate, card and command line."""

    verdict: Verdict
    reason: str = ""
    """Why, where no attack decided. Empty: `Removal.why` says it."""


def fate_of(removal: Removal | None) -> Fate:
    """Say the word; what no attack has tested counts as suppressed."""
    if removal is None:
        return Fate(verdict="suppressed", reason="not attacked")
    return Fate(verdict=removal.verdict)


def judge_removal(
    figures: tuple[AttackFigure, ...],
    *,
    n_tokens: int,
    n_contexts: int,
    effect: float,
    unrelated_behaviours: int,
    seed: int,
    taught: tuple[int, int] | None = None,
    diverged: tuple[str, ...] = (),
) -> Removal:
    """Apply the rule that was fixed beforehand; it reads intervals, never a point estimate.

    Args:
        figures: Of all attacks that were run, those that diverged among them.
        n_tokens: Tokens on which training is measured.
        n_contexts: Contexts that they stand in.
        effect: Mean KL(original || edited) on them, nats.
        unrelated_behaviours: How many each attack is held against.
        seed: Of the attacks.
        taught: Tokens that few-shot training may teach, and their contexts; None: not kept.
        diverged: Attacks that diverged and are not among the figures, in words.
    """
    lost = (*diverged, *(_named(figure) for figure in figures if figure.diverged))
    verdict, why = _verdict(figures, n_tokens, n_contexts, effect) or _unbroken(figures, lost, taught)
    return Removal(
        verdict=verdict,
        why=why,
        figures=tuple(figure for figure in figures if not figure.diverged),
        n_tokens=n_tokens,
        n_contexts=n_contexts,
        effect=effect if isfinite(effect) else sys.float_info.max,
        unrelated_behaviours=unrelated_behaviours,
        seed=seed,
        diverged=lost,
        taught=taught,
    )


def certified_only(removal: Removal, doubt: str) -> Removal:
    """Take `removed` back where the certificate is inconclusive: what withstood need not be the edit.

    Args:
        removal: What the attacks came to.
        doubt: Of the certificate; empty: it has none.
    """
    if not doubt or removal.verdict != "removed":
        return removal
    why = f"{removal.why}, but the certificate is inconclusive: what was attacked may not be all of the edit"
    return replace(removal, verdict="inconclusive", why=why)


def are_enough(n_tokens: int, n_contexts: int) -> bool:
    """Say whether intervals over so many tokens, in so many contexts, are worth anything."""
    return n_tokens >= LEAST_TOKENS and n_contexts >= LEAST_CONTEXTS


def _verdict(
    figures: tuple[AttackFigure, ...], n_tokens: int, n_contexts: int, effect: float
) -> tuple[Verdict, str] | None:
    """Decide where there is nothing to attack, or an attack succeeded."""
    if not are_enough(n_tokens, n_contexts):
        return "inconclusive", (
            f"the edit acts on {n_tokens} tokens in {n_contexts} contexts of the text; deciding needs "
            f"{_ENOUGH}"
        )
    if not isfinite(effect):
        return "inconclusive", "the answers of the edited model or of its parent overflow on the text"
    if effect < LEAST_EFFECT:
        return "inconclusive", f"the edit moves the answers by {effect:.1e} nats: nothing to bring back"
    succeeded = [figure for figure in figures if figure.succeeded]
    if succeeded:
        worst = max(succeeded, key=lambda figure: figure.excess.low)
        return "suppressed", (
            f"{_named(worst)} brings back {worst.returned.value:.0%} of the behaviour, and "
            f"{worst.unrelated.value:.0%} of {_unrelated(worst)} (excess at least {worst.excess.low:.0%})"
        )
    return None


def _unbroken(
    figures: tuple[AttackFigure, ...], lost: tuple[str, ...], taught: tuple[int, int] | None
) -> tuple[Verdict, str]:
    """Decide where no attack succeeded: withstood, or not shown."""
    if lost:
        return "inconclusive", (
            f"{lost[0]} diverged, in the edited model, in its parent or towards an unrelated behaviour: its "
            "figures are no numbers, and nothing is known of what it would bring back; ask for fewer steps "
            "(--attack-steps), or give other text"
        )
    if taught is not None and not are_enough(*taught):
        return "inconclusive", (
            f"the edit acts on {taught[0]} tokens in {taught[1]} contexts of the windows of training; "
            f"few-shot training needs {_ENOUGH}"
        )
    if {figure.kind for figure in figures} != {"recovery", "benign", "few_shot"}:
        return "inconclusive", "not every attack was run"
    narrow = next((figure for figure in figures if figure.too_narrow), None)
    if narrow is not None:
        return "inconclusive", (
            f"{_named(narrow)} was measured on {narrow.n_tokens} tokens in {narrow.n_contexts} contexts; "
            f"deciding needs {_ENOUGH}"
        )
    return _by_power(figures)


def _by_power(figures: tuple[AttackFigure, ...]) -> tuple[Verdict, str]:
    """Decide where every attack was run in full: none says anything that does nothing to anything."""
    recovery = [figure for figure in figures if figure.kind == "recovery"]
    strongest = max(recovery, key=lambda figure: figure.strength)
    if strongest.unrelated.high < LEAST_POWER:
        return "inconclusive", "the recovery attack moved nothing at all; its budgets are too small"
    if min(figure.unrelated.low for figure in recovery) > 1 - LEAST_POWER:
        return "inconclusive", "the recovery attack restores anything at every budget; they are too large"
    longest = max((f for f in figures if f.kind == "few_shot"), key=lambda figure: figure.strength)
    if longest.unrelated.high < LEAST_POWER:
        return "inconclusive", (
            f"{_named(longest)} brings back at most {longest.unrelated.high:.0%} of {_unrelated(longest)}: "
            "it is too weak to show anything; ask for more steps (--attack-steps), or give more text"
        )
    open_ones = [figure for figure in figures if figure.excess.high > WITHSTOOD]
    if open_ones:
        widest = max(open_ones, key=lambda figure: figure.excess.high)
        return "inconclusive", (
            f"{_named(widest)} may bring back up to {widest.excess.high:.0%} more than of unrelated "
            "behaviours; give more text"
        )
    most = max(figure.excess.high for figure in figures)
    return "removed", f"no attack brings back more than unrelated behaviours do (excess at most {most:.0%})"


def _unrelated(figure: AttackFigure) -> str:
    if figure.unrelated_most is None:
        return "unrelated ones"
    return f"{figure.unrelated_behaviours} unrelated ones, {figure.unrelated_most:.0%} of one at most"


def _named(figure: AttackFigure) -> str:
    if figure.kind == "recovery":
        return f"a perturbation of {figure.strength:.1%} of the residual's norm"
    text = "natural text in which it occurs" if figure.kind == "benign" else "a few of its contexts"
    return f"training on {text} for {figure.strength:.0f} steps"
