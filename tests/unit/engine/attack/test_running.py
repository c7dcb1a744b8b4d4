"""The attack as an export runs it: what it writes, and how long it may take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_folder
from tests.file_limits import files_end_at
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import neuron
from trephine.domain.errors import DeadlinePassedError, DiskFullError
from trephine.domain.interventions import Ablate
from trephine.engine.attack import running
from trephine.engine.attack.running import attacked
from trephine.engine.certificates import clean_process
from trephine.engine.certificates.clean_process import patience_for
from trephine.engine.certificates.export_texts import export_texts
from trephine.engine.models.quanta import finish

EDIT = (neuron(0, 3, Ablate()),)


@pytest.fixture
def hosted(tmp_path):
    """A parent with its folder."""
    return hosted_in(tiny_folder("llama", tmp_path / "parent"))


@pytest.mark.parametrize("size", [100, 1_000], ids=["directions", "request"])
@torch.inference_mode()
def test_a_disk_that_fills_up_before_the_attack_is_a_typed_error(hosted, tmp_path, size):
    """Its directions and its request are written like every other file of an export."""
    (tmp_path / "work").mkdir()
    with pytest.raises(DiskFullError, match="make room"), files_end_at(size):
        finish(attacked(hosted, export_texts(hosted, None), EDIT, (), tmp_path, tmp_path / "work"))
    assert (tmp_path / "work" / "directions.safetensors").exists() == (size > 100)


@pytest.mark.parametrize(
    ("steps", "parameters", "seconds"),
    [(50, 10_000, 1800), (100, 10_000, 3600), (50, 134_515_008, 4843), (200, 134_515_008, 19370)],
)
@torch.inference_mode()
def test_an_attack_has_the_longer_the_more_is_asked(
    hosted, tmp_path, monkeypatch, steps, parameters, seconds
):
    """Half an hour at least; more for a larger model and for longer training."""
    asked = {}

    def run(arguments, work, what, failure, *, patience, late):
        asked.update(seconds=patience * clean_process.TIME_LIMIT_SECONDS, late=late)
        yield
        raise DeadlinePassedError("late")

    monkeypatch.setattr(running, "run_clean", run)
    larger = replace(hosted, info=replace(hosted.info, n_parameters=parameters))
    texts = export_texts(hosted, None)
    with pytest.raises(DeadlinePassedError):
        finish(attacked(larger, texts, EDIT, (), tmp_path, tmp_path, training_steps=steps))
    assert asked["seconds"] == pytest.approx(seconds, abs=1)
    assert ("fewer --attack-steps" in asked["late"]) == (steps > 50)
    assert "without --attack" in asked["late"]


@torch.inference_mode()
def test_an_attack_that_is_late_says_what_to_do(hosted, tmp_path, monkeypatch):
    """Its error names the limit that it had and the options that it can be asked for less by."""
    monkeypatch.setattr(clean_process, "TIME_LIMIT_SECONDS", 0.01)
    says = pytest.raises(DeadlinePassedError, match=r"the attack .* fewer --attack-steps than 60.*--attack")
    texts = export_texts(hosted, None)
    with says:
        finish(attacked(hosted, texts, EDIT, (), tmp_path, tmp_path, training_steps=60))


def test_no_model_has_less_than_the_plain_limit():
    """A certification of a larger one has longer, too."""
    assert patience_for(1) == patience_for(50_000_000) == 1.0
    assert patience_for(1_000_000_000) == 20.0
