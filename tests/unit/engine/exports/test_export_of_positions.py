"""GPT-2 embeds tokens and positions: what is done to the one is done to the other, and exported."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_folder
from tests.unit.engine.exporting import edit_of, exported, hosted_in, planned
from tests.unit.engine.interventions import direction
from trephine.domain.interventions import ProjectOut, Scale
from trephine.domain.sites import SiteKind

V = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
EVERY_WRITER = (
    direction(SiteKind.EMBED, 0, V, ProjectOut()),
    *(
        direction(kind, layer, V, ProjectOut())
        for layer in range(3)
        for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    ),
)
ONE_SCALED = (direction(SiteKind.EMBED, 0, V, Scale(factor=0.5)),)


@pytest.mark.integration
@pytest.mark.parametrize("interventions", [EVERY_WRITER, ONE_SCALED])
def test_one_direction_of_both_embeddings_is_exported(interventions, tmp_path):
    """Both changes are of the same factor; the certifier is given it twice, and recomputes both."""
    hosted = hosted_in(tiny_folder("gpt2", tmp_path / "parent", max_shard_size="40KB"))
    (tmp_path / "exports").mkdir()
    edit = edit_of(hosted, *interventions)
    made = exported(hosted, edit, tmp_path / "exports" / "edited")
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= set(planned(hosted, edit).changed_tensors)
    assert made.certificate.verdict == "passed"
    found = {one.name: one.value for one in made.certificate.measurements}
    assert found["elements_off_plan"] == 0
    assert found["recovery"] > 0.999
