"""The card's words on attacks: removed or suppressed, what that means of the edit, and the figures."""

from __future__ import annotations

from trephine.domain.edit_kinds import is_removing, is_steering
from trephine.domain.edits import Edit
from trephine.domain.exports import Certificate
from trephine.domain.removal import AttackFigure, Interval


def removal_word(edit: Edit, certificate: Certificate) -> str:
    """Say the word, and what it means of an edit of this kind."""
    removal = certificate.removal
    if not certificate.changed_tensors:
        return (
            f"**{certificate.fate.verdict.capitalize()}**: no tensor was changed, so that nothing was taken\n"
            "  away that an attack could bring back."
        )
    if removal is None:
        return _not_attacked(edit, certificate)
    meaning = {
        "removed": "under the attacks above, at their strengths; stronger ones may bring it back.",
        "suppressed": "an attack brings the behaviour back more readily than ones that the model never had.",
        "inconclusive": "the attacks above decide nothing; it counts as suppressed.",
    }
    word = f"**{removal.verdict.capitalize()}**"
    if is_steering(edit.interventions) and not is_removing(edit.interventions):
        word += ", of what the parent does in place of what was put in"
    return f"{word}: {meaning[removal.verdict]}"


def _not_attacked(edit: Edit, certificate: Certificate) -> str:
    """Say what the word that stands for want of an attack says of what was taken away, put in, or neither."""
    word = f"{certificate.fate.verdict} ({certificate.fate.reason})"
    taken, put = is_removing(edit.interventions), is_steering(edit.interventions)
    if not taken and not put:
        return (
            "No recovery attack has been run, and there is nothing that one could bring back: the edit\n"
            f"  takes nothing away and puts nothing in. The certificate's word, {word}, says no\n"
            "  more of it."
        )
    if not taken:
        return (
            "No recovery attack has been run. The edit puts something in and takes nothing away, so that\n"
            f"  the certificate's word, {word}, is of nothing ablated; a short fine-tuning may undo\n"
            "  what was put in."
        )
    undone = ", and undo what was put in" if put else ""
    return (
        f"No recovery attack has been run: what was taken away counts as {word},\n"
        f"  not removed, and a short fine-tuning may bring it back{undone}."
    )


def attack_table(certificate: Certificate) -> str:
    """Write what attacks brought back; whole paragraphs, or nothing."""
    removal = certificate.removal
    if removal is None:
        return ""
    rows = "\n".join(
        f"| {f.kind.replace('_', '-')} | {f.strength:g} | {_where(f)} | {_interval(f.returned)} "
        f"| {_interval(f.unrelated)} "
        f"| {_most(f)} | {_interval(f.excess)} |"
        for f in removal.figures
    )
    table = (
        "\n\n| attack | strength | tokens in contexts | behaviour back | unrelated ones | most of one "
        "| excess |\n|---|---|---|---|---|---|---|\n" + rows
        if rows
        else ""
    )
    return f"""## Attacks: {removal.verdict}

{removal.why.capitalize()}.

On tokens on which the edit acts, those of training, {removal.n_tokens} in {removal.n_contexts} contexts, by
{removal.effect:.2g} nats. Recovery perturbs the residual stream by a share of its norm, off the directions
that the edited features read. Benign training is on the next tokens of natural text in which the behaviour
occurs, few-shot training on a few contexts with the original's answers, each for a number of steps. Shares of
the behaviour with 95 % intervals over contexts; unrelated behaviours have its size and geometry, and their
intervals are over several of them as well. Benign training is held against the unedited parent trained alike,
too; few-shot training is not run on it: those are its own answers, and its gradient is zero.{table}

"""


def _where(figure: AttackFigure) -> str:
    """Say on how many tokens in how many contexts it was measured."""
    return f"{figure.n_tokens} in {figure.n_contexts}" if figure.n_tokens else "not kept"


def _most(figure: AttackFigure) -> str:
    """Say how much returned of the unrelated behaviour of which most did, and of how many."""
    if figure.unrelated_most is None:
        return "not kept"
    return f"{figure.unrelated_most:.2f} of {figure.unrelated_behaviours}"


def _interval(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
