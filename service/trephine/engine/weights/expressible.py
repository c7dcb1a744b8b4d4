"""What no weights can express, refused by field: whatever is not the same at every position of every text."""

from __future__ import annotations

from trephine.domain.errors import EditNotExpressibleError
from trephine.domain.interventions import Mode, PatternMode, Selector

SERVED = "or serve the edit instead (requests that name it: `--edit`)"
"""What can be done with an edit that no weights can express."""


def require_everywhere(selector: Selector, where: str) -> None:
    """Refuse a selector that leaves anything out.

    Raises:
        EditNotExpressibleError: Naming the field under `where`.
    """
    plain = Selector()
    reasons = {
        "positions": "weights act at every position",
        "tokens": "weights act on every token",
        "phases": "weights act on prompts and on generated tokens alike",
        "exclude_positions": "weights cannot leave a position out",
        "exclude_tokens": "weights cannot leave a token out",
    }
    for name, reason in reasons.items():
        chosen, default = getattr(selector, name), getattr(plain, name)
        if (set(chosen) != set(default)) if name == "phases" else (chosen != default):
            raise refusal(
                f"{where}.selector.{name}", f"{reason}; leave {name} out of an edit that is to ship, {SERVED}"
            )


def require_unlimited(mode: Mode, where: str) -> None:
    """Refuse a mode that does not let the change travel on.

    Raises:
        EditNotExpressibleError: Naming the field under `where`.
    """
    if mode.last_layer is not None:
        raise refusal(
            f"{where}.mode.last_layer",
            f"a change of weights reaches every later layer; leave it out, {SERVED}",
        )
    if mode.patterns is not PatternMode.LIVE:
        raise refusal(
            f"{where}.mode.patterns",
            f"attention follows changed weights; leave patterns `live`, {SERVED}",
        )
    if mode.heads:
        raise refusal(
            f"{where}.mode.heads", f"changed weights are read by every head; leave heads out, {SERVED}"
        )


def refusal(field_name: str, why: str) -> EditNotExpressibleError:
    """Return the error that names a field and says why."""
    return EditNotExpressibleError(f"{field_name} cannot be written into weights: {why}", field=field_name)
