"""Several edited features on the terminal, each on the tokens on which it fires itself."""

from __future__ import annotations

from trephine.client.cli.output import Output
from trephine.client.types import Certificate

_COLUMNS = (
    ("firing_tokens", "TOKENS", "{:.0f}"),
    ("edit_kl_firing_mean", "EDIT", "{:.2e}"),
    ("kl_intervened_exported_firing_mean", "LEFT", "{:.2e}"),
    ("recovery_firing", "RECOVERED", "{:.4f}"),
    ("carried", "CARRIED", "{:.4f}"),
)
_AS_STORED = (
    ("kl_intervened_exported_in_stored_dtype_firing_mean", "LEFT AS STORED", "{:.2e}"),
    ("noise_floor_dtype_firing_mean", "PARENT'S ROUNDING", "{:.2e}"),
)
"""Shown where the files hold another type than the runtime computed in."""
_UNKNOWN = "not measured"


def show_features(output: Output, certificate: Certificate) -> None:
    """Print a row per feature; nothing of an edit that does but one thing.

    `RECOVERED` is the share of the whole edit on its tokens, `CARRIED` how much of what this feature alone
    does of the edit is done: 1 all of it, 0 nothing.
    """
    found = {one.name: one.value for one in certificate.measurements}
    prefix = f"{_COLUMNS[0][0]}:"
    names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
    if not names:
        return
    stored = any(name.startswith(f"{_AS_STORED[0][0]}:") for name in found)
    columns = _COLUMNS + (_AS_STORED if stored else ())
    rows = []
    for name in names:
        figures = [(found.get(f"{column}:{name}"), form) for column, _, form in columns]
        rows.append((name, *(_UNKNOWN if value is None else form.format(value) for value, form in figures)))
    output.table(("FEATURE", *(title for _, title, _ in columns)), rows)
