"""Kill -9 of the process that exports, at ten moments drawn by seed: no partial folder, no leftovers."""

from __future__ import annotations

import os
import random
import signal

import pytest
import torch

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import compiling, edit_of, planned, write_key
from tests.unit.engine.weights.folders import feature, parent
from trephine.client.verification import verify_folder
from trephine.domain.interventions import Ablate
from trephine.engine.models.quanta import finish
from trephine.engine.models.staging import PREFIX

BUILDING = ("copy", "check parent", "compile", "evidence")
CERTIFYING = ("certify", "sign")
"""Reached only through the clean process, which costs seconds: one moment in each."""
KILLS = 10


@pytest.mark.integration
@torch.inference_mode()
def test_an_export_that_is_killed_anywhere_leaves_nothing_visible(tmp_path, clean_host):
    """Ten processes die by SIGKILL, each in another quantum; each sweeps what the last one left.

    A moment is some quanta after a stage has begun; where the stage is shorter, it lies in the next one.
    """
    hosted = parent("llama", tmp_path / "parent", biases=False)
    resident_set(hosted, "jumprelu")
    edit = edit_of(hosted, feature(0, 3, Ablate()), feature(1, 5, Ablate()))
    plan, key = planned(hosted, edit), str(write_key(tmp_path / "key.pem"))
    root = tmp_path / "exports"
    root.mkdir()
    assert clean_host.requests  # it is started here, for each process that is killed would start its own

    def export(name):
        return compiling(hosted, edit, plan, root / name, signing_key=key)

    draw = random.Random(5)
    stages = [*CERTIFYING, *BUILDING, *draw.choices(BUILDING, k=KILLS - len(CERTIFYING) - len(BUILDING))]
    draw.shuffle(stages)
    for stage in stages:
        _killed_in(export("edited"), stage, draw.randrange(8))
        assert [path.name for path in root.iterdir() if not path.name.startswith(PREFIX)] == [], stage
        assert len(list(root.glob(f"{PREFIX}*"))) <= 1, "each attempt sweeps what the last one left"
    made = finish(export("edited"))
    assert made.certificate.passed
    assert verify_folder(root / "edited").passed
    assert sorted(path.name for path in root.iterdir()) == ["edited"]


def _killed_in(work, stage, after):
    """Export in a process of its own, which is killed some quanta after a stage has begun."""
    child = os.fork()
    if child == 0:
        left = None
        try:
            for event in work:
                if left is None and event is not None and event.stage == stage:
                    left = after
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left = None if left is None else left - 1
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it ended before it came to {stage} and {after} quanta further"
    assert os.WTERMSIG(status) == signal.SIGKILL
