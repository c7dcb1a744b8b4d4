"""A certificate on the terminal: its verdict, its main figures beside their floors, its gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.feature_shares import show_features
from trephine.client.cli.output import Output
from trephine.client.types import Certificate, ExportVerdict

NOTHING = "-"
_RUNTIME = "from the intervened runtime"
_FLOOR = "the parent's own rounding"
_AS_STORED = (("_in_stored_dtype", ""), ("_both_in_stored_dtype", ", as is the runtime"))
_TOKENS = (
    ("top1_agreement", "top-1 agreement"),
    ("greedy_match", "greedy tokens that match"),
    ("perplexity_ratio", "ratio of perplexities"),
)
_PLACES = (("_mean", "all tokens"), ("_firing_mean", "firing tokens"), ("_first_mean", "position 0"))


def status_of(verdict: ExportVerdict) -> ExitCode:
    """The exit status of a verdict; whatever is neither a pass nor a failure is a doubt."""
    known = {ExportVerdict.PASSED: ExitCode.PASS, ExportVerdict.FAILED: ExitCode.FINDINGS}
    return known.get(verdict, ExitCode.INCONCLUSIVE)


def verdict_word(verdict: ExportVerdict, doubt: str) -> str:
    """The verdict in capitals, with the doubt of one that is inconclusive."""
    if verdict is ExportVerdict.UNSPECIFIED:
        return "UNKNOWN: the server is older than this word"
    return f"{verdict.value.upper()}: {doubt}" if doubt else verdict.value.upper()


def dtypes(certificate: Certificate) -> str:
    """What the folder's files hold, and what the runtime computed in that it was held against."""
    compute = certificate.environment.get("compute_dtype")
    return f"{certificate.dtype}; the runtime computed in {compute}" if compute else certificate.dtype


def show_main_figures(output: Output, certificate: Certificate) -> None:
    """Print what most wish to know, each figure beside what it is to be held against."""
    rows = list(main_rows(certificate))
    if rows:
        output.table(("FIGURE", "EXPORT", "BESIDE", "WHICH IS"), rows)
    show_features(output, certificate)


def main_rows(certificate: Certificate) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the main figures, nats per token or shares: name, figure, what it is beside, what that is."""
    found = {one.name: one.value for one in certificate.measurements}
    wide = certificate.environment.get("compute_dtype") in ("float32", "float64")
    for place, where in _PLACES:
        name = f"kl_intervened_exported{place}"
        yield from _row(found, f"KL {_RUNTIME}, {where}", name, _floor(found, place, wide=wide), _FLOOR)
    for place, where in _PLACES:
        stored = f"kl_intervened_exported_in_stored_dtype{place}"
        floor = found.get(f"noise_floor_dtype{place}")
        what = f"KL {_RUNTIME}, run in {certificate.dtype}, {where}"
        yield from _row(found, what, stored, floor, stored_floor(certificate))
    yield from _row(found, "edit that is carried, all tokens", "recovery", digits=True)
    yield from _row(found, "edit that is carried, firing tokens", "recovery_firing", digits=True)
    damage = found.get("retain_kl_original_intervened_mean")
    yield from _row(
        found, "KL from the parent", "retain_kl_original_exported_mean", damage, "the runtime's own"
    )
    own = found.get("noise_top1_agreement")
    yield from _row(found, "top-1 agreement", "top1_agreement", own, _FLOOR, digits=True)
    yield from _row(found, "greedy tokens that match", "greedy_match", digits=True)
    yield from _row(found, "ratio of perplexities", "perplexity_ratio", digits=True)
    yield from _rows_as_stored(found, certificate)


def stored_floor(certificate: Certificate) -> str:
    """What the parent's own rounding beside a folder run as stored is of: always two types, by name.

    Certificates older than `floor_dtype` were measured in bfloat16 beside float32, and in float32 beside all
    others, whatever their files held.
    """
    compute = certificate.environment.get("compute_dtype")
    if compute is None:
        return _FLOOR
    other = certificate.environment.get("floor_dtype", "bfloat16" if compute == "float32" else "float32")
    stored = ", as stored" if other == certificate.dtype else ""
    return f"the parent's own{stored}: {other} against {compute}"


def _rows_as_stored(
    found: Mapping[str, float], certificate: Certificate
) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the folder run in the type of its files, where the runtime computed in a wider one."""
    dtype, floor = certificate.dtype, stored_floor(certificate)
    for place, where in _PLACES[:2]:
        tokens = place.removesuffix("_mean")
        for name, beside in _AS_STORED:
            what = f"edit that is carried, run in {dtype}{beside}, {where}"
            yield from _row(found, what, f"recovery{name}{tokens}", digits=True)
    for figure, says in _TOKENS:
        for name, beside in _AS_STORED:
            own = None if beside else found.get(f"noise_{figure}{name}")
            what = f"{says}, run in {dtype}{beside}"
            yield from _row(found, what, f"{figure}{name}", own, floor, digits=True)


def figure_rows(certificate: Certificate) -> list[tuple[str, ...]]:
    """A certificate's measurements as rows of a table, under the names that its JSON has them by."""
    return [(one.name, f"{one.value:.3g}", one.unit) for one in certificate.measurements]


def gate_rows(certificate: Certificate) -> list[tuple[str, ...]]:
    """A certificate's gates as rows of a table."""
    return [
        (
            result.gate.name,
            f"{result.measured:.3g}",
            f"{result.gate.limit:.3g}",
            result.gate.unit,
            "yes" if result.passed else "NO",
        )
        for result in certificate.gates
    ]


def _floor(found: Mapping[str, float], place: str, *, wide: bool) -> float | None:
    """The parent's own noise: of its attention, and of its dtype where that is narrow; as gates take it."""
    names = ("noise_floor_attention",) if wide else ("noise_floor_attention", "noise_floor_dtype")
    parts = [found.get(f"{name}{place}") for name in names]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _row(
    found: Mapping[str, float],
    what: str,
    name: str,
    beside: float | None = None,
    which: str = "",
    *,
    digits: bool = False,
) -> Iterator[tuple[str, str, str, str]]:
    """One row, or none where nothing was measured."""
    if name not in found:
        return
    form = "{:.4f}" if digits else "{:.2e}"
    if beside is None:
        yield what, form.format(found[name]), NOTHING, ""
    else:
        yield what, form.format(found[name]), form.format(beside), which
