"""The families' benchmark says by its status whether every row holds a law."""

from __future__ import annotations

import pytest

from benchmarks import export_families
from tests.unit.engine.weights.narrow import Row


def found(kind, several, *, graft):
    """Measure an edit of a hundred floors, whose runtime is at the floor."""
    return Row(
        family="llama",
        kind=kind,
        several=several,
        tokens=100,
        edit=100.0,
        floor=1.0,
        runtime=1.0,
        best=None,
        graft=graft,
        idle=101.0,
        recovery=0.9,
        recovery_same=0.9,
        program=None,
    )


@pytest.mark.parametrize(("graft", "status"), [(1.4, 0), (1.6, 3)], ids=["held", "held to nothing"])
def test_a_row_that_holds_no_law_is_named_and_ends_with_status_3(graft, status, monkeypatch, capsys):
    """Of bfloat16 files: one of the six rows lies beyond every bound."""

    def row(_scene, kind, _folder, *, several):
        return found(kind, several, graft=graft if (kind, several) == ("clamp", True) else 1.0)

    monkeypatch.setattr(export_families, "narrow_scene", lambda *_: None)
    monkeypatch.setattr(export_families, "row", row)
    monkeypatch.setattr(export_families, "wide_rows", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["export_families", "--families", "llama"])
    assert export_families.main() == status
    assert ("holds no law: llama, clamp, four, in bfloat16" in capsys.readouterr().out) == (status == 3)


@pytest.mark.parametrize(
    ("tier", "called", "share", "holds"),
    [
        ("neuron scaled", "exact", 1.0, True),
        ("neuron scaled", "fitted", 0.99, False),
        ("graft, ReLU", "refused", 0.5, False),
        ("graft, ReLU", "graft", 0.98, False),
        ("ridge", "refused", 0.4, True),
        ("no-op", "fails", 0.0, True),
        ("no-op", "graft", 1.0, False),
    ],
)
def test_a_row_that_is_not_called_what_its_family_promises_holds_no_law(tier, called, share, holds):
    """What was exact and is refused today ended with status 0: only its own name was looked at."""
    assert export_families.holds("llama", tier, called, share, None) == holds


def test_models_in_which_nothing_is_planted_have_no_laws_but_that_of_a_copy():
    """Refusals are what `--common 0` shows."""
    assert export_families.holds("qwen2", "graft, ReLU", "refused", 0.7, 0.0)
    assert not export_families.holds("qwen2", "no-op", "fitted", 1.0, 0.0)
