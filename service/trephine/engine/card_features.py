"""The card's table of several edited features: none of them hides among the others."""

from __future__ import annotations

from collections.abc import Mapping

from trephine.domain.exports import Certificate

_COLUMNS = (
    ("firing_tokens", "{:.0f}"),
    ("edit_kl_firing_mean", "{:.3g}"),
    ("kl_intervened_exported_firing_mean", "{:.3g}"),
    ("recovery_firing", "{:.4f}"),
    ("carried", "{:.4f}"),
)


def features_of(certificate: Certificate) -> list[str]:
    """List the features that were measured apart."""
    prefix = f"{_COLUMNS[0][0]}:"
    names = (one.name for one in certificate.measurements)
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def feature_table(certificate: Certificate) -> str:
    """Write what was measured of each feature; whole paragraphs, or nothing where there is but one thing."""
    found = {one.name: one.value for one in certificate.measurements}
    rows = [_row(found, name) for name in features_of(certificate)]
    if not rows:
        return ""
    table = "\n".join(rows)
    return f"""On the tokens on which each feature fires itself: what the whole edit moves, what is left of
that, the share that is recovered, and `carried`, how much of what this feature alone does of the edit the
checkpoint does (1: all, 0: nothing, whatever it makes of the others).

| feature | tokens | edit | left | recovered | carried |
|---|---|---|---|---|---|
{table}

"""


def _row(found: Mapping[str, float], name: str) -> str:
    figures = [(found.get(f"{column}:{name}"), form) for column, form in _COLUMNS]
    cells = ["not measured" if value is None else form.format(value) for value, form in figures]
    return f"| `{name}` | {' | '.join(cells)} |"
