"""Edits belong to the weights that they were made for."""

from __future__ import annotations

from trephine.domain.edits import Edit
from trephine.domain.errors import ParentChangedError


def require_weights(edit: Edit, model: str, weight_hash: str, *, field: str | None = None) -> None:
    """Refuse an edit of other weights than those of a model.

    Args:
        edit: The edit.
        model: Name of the model that it is to act on.
        weight_hash: Of that model.
        field: Of the request that names the edit; None: there is none.

    Raises:
        ParentChangedError: Saying which model the edit is for, and what to do.
    """
    if edit.weight_hash == weight_hash:
        return
    why = (
        f"{edit.model}, and {model} is another model: name {edit.model}"
        if edit.model != model
        else f"other weights than those that {model} has now: restore them"
    )
    context = {"edit_weights": edit.weight_hash, "model_weights": weight_hash}
    raise ParentChangedError(
        f"the edit {edit.name} was made for {why}, or create it again for this one",
        **context | ({} if field is None else {"field": field}),
    )
