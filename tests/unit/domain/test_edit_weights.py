"""An edit of other weights is refused with what to do: name its model, or restore the weights."""

from __future__ import annotations

import pytest

from trephine.domain.edit_weights import require_weights
from trephine.domain.edits import Edit
from trephine.domain.errors import ParentChangedError

EDIT = Edit(
    name="quiet", version=1, content_hash="c", interventions=(), reason="", author="", evidence=(),
    model="tiny", weight_hash="w", create_time="",
)  # fmt: skip


def test_its_own_weights_are_taken():
    """Under whatever name the model was loaded."""
    require_weights(EDIT, "tiny", "w")
    require_weights(EDIT, "a copy", "w")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("other", "was made for tiny, and other is another model: name tiny, or create it again"),
        ("tiny", "was made for other weights than those that tiny has now: restore them, or create it again"),
    ],
)
def test_a_forgotten_model_is_told_from_changed_weights(model, says):
    """Whoever forgot `--model` has nothing to create again."""
    with pytest.raises(ParentChangedError, match=says) as caught:
        require_weights(EDIT, model, "v", field="edits[0].edit")
    assert caught.value.context["field"] == "edits[0].edit"
    assert caught.value.context["model_weights"] == "v"
