"""The word of an attacked export on the terminal."""

from __future__ import annotations

from dataclasses import replace

from trephine.client.cli.output import Output
from trephine.client.cli.removal import show_removal, word
from trephine.client.types import (
    AttackFigure,
    AttackKind,
    Certificate,
    Fate,
    Removal,
    RemovalVerdict,
    ShareInterval,
)
from trephine.client.verification import Verification


def certificate(removal: Removal | None) -> Certificate:
    """A certificate of which nothing else is shown here."""
    return Certificate(
        edit="edits/one", edit_hash="", plan_hash="", parent_hash="", dtype="float32", measurements=(),
        gates=(), passed=True, changed_tensors=(), untouched_tensors_verified=0, environment={}, text="",
        n_tokens=0, removal=removal,
        fate=Fate(verdict=RemovalVerdict.SUPPRESSED, reason="" if removal else "not attacked"),
    )  # fmt: skip


def test_the_word_comes_first_then_the_figures(capsys):
    """With the reason, and every share with its interval."""
    share = ShareInterval(value=0.5, low=0.4, high=0.6)
    figure = AttackFigure(
        kind=AttackKind.FEW_SHOT, strength=50, returned=share, unrelated=share, excess=share,
        unrelated_most=0.55, unrelated_behaviours=3,
    )  # fmt: skip
    older = replace(figure, unrelated_most=None, unrelated_behaviours=0)
    removal = Removal(
        verdict=RemovalVerdict.SUPPRESSED, why="it came back", figures=(figure, older), n_tokens=9,
        n_contexts=5, effect=0.1, unrelated_behaviours=3, seed=0,
    )  # fmt: skip
    show_removal(Output(json=False), certificate(removal))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "suppressed: it came back"
    shares = ["0.50 [0.40, 0.60]"] * 2
    assert lines[2].split("\t") == ["few-shot", "50", *shares, "0.55 of 3", shares[0]]
    assert lines[3].split("\t") == ["few-shot", "50", *shares, "-", shares[0]]


def test_what_attacks_leave_open_counts_as_suppressed(capsys):
    """Beside the word wherever it is printed: after an export, in lists, by the verifier."""
    open_one = Removal(
        verdict=RemovalVerdict.INCONCLUSIVE, why="too few tokens", figures=(), n_tokens=3, n_contexts=2,
        effect=0.1, unrelated_behaviours=3, seed=0,
    )  # fmt: skip
    shown = replace(certificate(open_one), fate=Fate(verdict=RemovalVerdict.INCONCLUSIVE))
    show_removal(Output(json=False), shown)
    assert capsys.readouterr().out == "inconclusive (counts as suppressed): too few tokens\n"
    assert word(shown) == "inconclusive (counts as suppressed)"
    assert Verification(passed=True, removal="inconclusive").behaviour == word(shown)
    for decided in ("removed", "suppressed"):
        assert Verification(passed=True, removal=decided).behaviour == decided
    assert Verification(passed=True).behaviour == "unknown"


def test_what_was_not_attacked_is_not_called_removed(capsys):
    """Its word stands among the results, with its reason."""
    show_removal(Output(json=False), certificate(None))
    captured = capsys.readouterr()
    assert captured.out == "behaviour: suppressed (not attacked)\n"
    assert "--attack" in captured.err


def test_where_nothing_was_changed_no_attack_is_asked_for(capsys):
    """The word has its reason, and nothing could be brought back."""
    fate = Fate(verdict=RemovalVerdict.INCONCLUSIVE, reason="no tensor was changed")
    show_removal(Output(json=False), replace(certificate(None), fate=fate))
    captured = capsys.readouterr()
    assert captured.out == "behaviour: inconclusive (no tensor was changed)\n"
    assert captured.err == ""
