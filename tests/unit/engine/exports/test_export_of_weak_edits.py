"""Exact edits that are weak: told from their absence where that can be, and doubted where not."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from tests.builders import tiny_folder
from tests.unit.domain.test_removal import BENIGN, RECOVERY, SHOTS
from tests.unit.engine.exporting import edit_of, exported, hosted_in, planned
from tests.unit.engine.interventions import neuron
from trephine.client.verification import verify_folder
from trephine.domain.exports import ExportOptions
from trephine.domain.interventions import Ablate, Scale
from trephine.domain.removal import Removal, judge_removal
from trephine.engine.certificates.gates import judge
from trephine.engine.exports import export


def weak(factor):
    """Scale all neurons of one layer."""
    return tuple(neuron(1, index, Scale(factor=factor)) for index in range(64))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A parent whose files are bfloat16."""
    return tiny_folder("llama", tmp_path_factory.mktemp("narrow") / "parent", dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_exact_edit_that_moves_less_than_rounding_is_doubted(narrow, dtype):
    """In bfloat16 a copy of the parent would be as near; in float32 a gate tells them apart."""
    hosted = hosted_in(narrow, dtype)
    plan = planned(hosted, edit_of(hosted, *weak(0.9975)))
    doubted = dtype is torch.bfloat16
    assert plan.doubt.startswith("the edit moves less than rounding") == doubted
    assert ("Over the 1024 measured tokens" in plan.doubt) == doubted
    copy = dict.fromkeys((gate.name for gate in plan.gates), 0.0) | {"unrecovered": 1.0}
    assert all(result.passed for result in judge(plan.gates, copy)) == doubted


def test_a_strong_one_is_not_doubted_and_one_that_changes_nothing_claims_nothing(narrow):
    """What is silenced stands above rounding in bfloat16, too; a factor of 1 is told to change none."""
    hosted = hosted_in(narrow, torch.bfloat16)
    strong = planned(hosted, edit_of(hosted, *(neuron(1, index, Ablate()) for index in range(64))))
    assert strong.doubt == ""
    assert "unrecovered" in {gate.name for gate in strong.gates}
    idle = planned(hosted, edit_of(hosted, neuron(1, 3, Scale(factor=1.0))))
    assert idle.changed_tensors == ()
    assert idle.doubt.startswith("the edit changes no tensor")


@pytest.mark.integration
def test_nothing_is_called_removed_by_a_certificate_that_is_inconclusive(tmp_path, monkeypatch):
    """Attacks may find nothing to bring back where an edit is not shown to be there."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16), torch.bfloat16)
    edit, folder = edit_of(hosted, *weak(0.9975)), tmp_path / "exports" / "weak"
    folder.parent.mkdir()

    def withstood(*args: object, **options: object) -> Generator[None, None, Removal]:
        yield None
        figures = (RECOVERY, BENIGN, SHOTS)
        return judge_removal(figures, n_tokens=16, n_contexts=8, effect=0.1, unrelated_behaviours=3, seed=0)

    monkeypatch.setattr(export, "attacked", withstood)
    made = exported(hosted, edit, folder, options=ExportOptions(attack=True))
    assert made.certificate.verdict == "inconclusive"
    assert made.certificate.fate.verdict == "inconclusive"
    assert "but the certificate is inconclusive" in made.certificate.removal.why
    outcome = verify_folder(folder)
    assert (outcome.passed, outcome.removal) == (True, "inconclusive")
    card = (folder / "README.md").read_text()
    assert "**Removed**" not in card
    assert "it counts as suppressed" in card
