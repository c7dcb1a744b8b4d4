"""Where a feature fires is shown as text, though its token be a part of a character."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.evidence import _firing
from trephine.engine.spurious.study import open_study


@pytest.mark.parametrize(
    ("position", "before", "token"),
    [(0, "", "a"), (2, "a\ufffd", r"\xa9"), (3, "a\xe9", "b"), (4, "a\xe9b", " c")],
)
def test_a_part_of_a_character_is_shown_by_its_bytes(position: int, before: str, token: str):
    """What stands before it ends where it begins, so that a page can mark it."""
    training = tuple(
        replace(one, text=f"a\xe9b c{one.text}", attribute=None) for one in ambiguous(attribute=False)
    )
    command = RemoveSpuriousFeatures(training=training, decision=ProbeHead(layer=0, pooling=Pooling.MEAN))
    study = finish(open_study(tiny_hosted("llama"), command))
    found = _firing(study, study.fitted[0], 2.5, position)
    assert (found.text.removesuffix(found.token), found.token) == (before, token)
