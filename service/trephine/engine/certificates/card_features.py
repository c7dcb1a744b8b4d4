"""The card's table of several edited features: none of them hides among the others."""

from __future__ import annotations

from trephine.domain.exports import Certificate

_COLUMNS = (
    ("firing_tokens", "tokens", "{:.0f}"),
    ("edit_kl_firing_mean", "edit", "{:.3g}"),
    ("kl_intervened_exported_firing_mean", "left", "{:.3g}"),
    ("recovery_firing", "recovered", "{:.4f}"),
    ("carried", "carried", "{:.4f}"),
)
_AS_STORED = (
    ("kl_intervened_exported_in_stored_dtype_firing_mean", "left as stored", "{:.3g}"),
    ("noise_floor_dtype_firing_mean", "parent's rounding", "{:.3g}"),
)
"""Shown where the files hold another type than the runtime computed in."""


def feature_table(certificate: Certificate) -> str:
    """Write what was measured of each feature; whole paragraphs, or nothing where there is but one thing."""
    found = {one.name: one.value for one in certificate.measurements}
    prefix = f"{_COLUMNS[0][0]}:"
    names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
    if not names:
        return ""
    stored = any(name.startswith(f"{_AS_STORED[0][0]}:") for name in found)
    columns = _COLUMNS + (_AS_STORED if stored else ())
    rows = [["feature", *(title for _, title, _ in columns)], ["---"] * (len(columns) + 1)]
    for name in names:
        figures = [(found.get(f"{column}:{name}"), form) for column, _, form in columns]
        cells = ("not measured" if value is None else form.format(value) for value, form in figures)
        rows.append([f"`{name}`", *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""On the tokens on which each feature fires itself (neurons, heads and directions: on those on
which they do most): what the whole edit moves, what is left of that, the share that is recovered, and
`carried`, how much of what this feature alone does of the edit the checkpoint does (1: all, 0: nothing,
whatever it makes of the others).

{table}

"""
