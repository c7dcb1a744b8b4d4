"""Exact edits of bfloat16 files whose model is loaded in float32, as it is by default."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_folder
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.interventions import direction, neuron
from trephine.domain.interventions import ProjectOut, Scale
from trephine.domain.sites import SiteKind

AXIS = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
WRITERS = (
    direction(SiteKind.EMBED, 0, AXIS, ProjectOut()),
    *(
        direction(kind, layer, AXIS, ProjectOut())
        for layer in range(3)
        for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    ),
)


@pytest.mark.integration
@pytest.mark.parametrize(
    "edit", [WRITERS, (neuron(1, 4, Scale(factor=-3.0)),)], ids=["every writer", "one neuron"]
)
def test_what_is_rounded_to_the_files_is_not_refused_for_it(edit, tmp_path):
    """Every element is the nearest that the files can hold; the whole edit but rounding is carried."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16), torch.float32)
    certificate = exported(hosted, edit_of(hosted, *edit), tmp_path / "exported").certificate
    assert certificate.verdict == "passed"
    found = {one.name: one.value for one in certificate.measurements}
    assert found["elements_off_plan"] == 0
    assert found["recovery"] > 0.999
