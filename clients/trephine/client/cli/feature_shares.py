"""Several edited features on the terminal, each on the tokens on which it fires itself."""

from __future__ import annotations

from trephine.client.cli.output import Output
from trephine.client.types import Certificate

_COLUMNS = (
    ("firing_tokens", "{:.0f}"),
    ("edit_kl_firing_mean", "{:.2e}"),
    ("kl_intervened_exported_firing_mean", "{:.2e}"),
    ("recovery_firing", "{:.4f}"),
    ("carried", "{:.4f}"),
)
_UNKNOWN = "not measured"


def show_features(output: Output, certificate: Certificate) -> None:
    """Print a row per feature; nothing of an edit that does but one thing."""
    rows = feature_rows(certificate)
    if rows:
        output.table(("FEATURE", "TOKENS", "EDIT", "LEFT", "RECOVERED", "CARRIED"), rows)


def feature_rows(certificate: Certificate) -> list[tuple[str, ...]]:
    """Rows of name, firing tokens, KL of the whole edit there, what is left of it, and two shares.

    The first is what is recovered of the edit there, the second how much of what this feature alone does of
    the edit is done: 1 all of it, 0 nothing.
    """
    found = {one.name: one.value for one in certificate.measurements}
    prefix = f"{_COLUMNS[0][0]}:"
    names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
    rows = []
    for name in names:
        figures = [(found.get(f"{column}:{name}"), form) for column, form in _COLUMNS]
        rows.append((name, *(_UNKNOWN if value is None else form.format(value) for value, form in figures)))
    return rows
