"""The word of an export, with the figures of the attacks on it."""

from __future__ import annotations

from trephine.client.cli.certificate_text import NOTHING
from trephine.client.cli.output import Output
from trephine.client.terminal import printable
from trephine.client.types import Certificate
from trephine.client.types.removal import AttackFigure, RemovalVerdict, ShareInterval, word_as_text


def show_removal(output: Output, certificate: Certificate) -> None:
    """Print whether the behaviour is removed or suppressed, and why; one left open counts as the latter."""
    removal = certificate.removal
    if removal is None:
        output.line(f"behaviour: {word(certificate)}")
        if certificate.fate is None or certificate.fate.verdict is not RemovalVerdict.INCONCLUSIVE:
            output.note("export with --attack to see whether it can be brought back")
        return
    output.line(f"{word_as_text(removal.verdict.value)}: {printable(removal.why)}")
    if removal.figures:
        output.table(
            ("ATTACK", "STRENGTH", "BACK", "UNRELATED", "MOST OF ONE", "EXCESS"),
            [_row(f) for f in removal.figures],
        )


def word(certificate: Certificate) -> str:
    """The word on one line; a server that is older than the word sends none."""
    return "unknown" if certificate.fate is None else printable(str(certificate.fate))


def _row(figure: AttackFigure) -> tuple[str, ...]:
    return (
        figure.kind.value.replace("_", "-"),
        f"{figure.strength:g}",
        _share(figure.returned),
        _share(figure.unrelated),
        NOTHING
        if figure.unrelated_most is None
        else _most(figure.unrelated_most, figure.unrelated_behaviours),
        _share(figure.excess),
    )


def _most(share: float, behaviours: int) -> str:
    return f"{share:.2f} of {behaviours}"


def _share(interval: ShareInterval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
