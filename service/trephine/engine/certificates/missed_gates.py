"""What is said of an export that misses a gate: figures, what became of the folder, what to do."""

from __future__ import annotations

from math import inf

from trephine.domain.errors import GateMissedError
from trephine.domain.exports import Certificate, GateResult
from trephine.engine.certificates.gates import finite, kind_of, told_apart
from trephine.engine.certificates.remedies import remedies


def _figure(result: GateResult) -> str:
    """Say what was measured; a share is not where the edit moves nothing on the text."""
    gate = result.gate
    if result.measured < finite(inf):
        measured, limit = told_apart(result.measured, gate.limit)
        return f"{gate.name} = {measured} {gate.unit}, planned at most {limit}"
    if kind_of(gate) in ("unrecovered", "unrecovered_firing", "uncarried"):
        return f"{gate.name} has no value, for the edit moves nothing on the text; give one on which it acts"
    return f"{gate.name} is not a number, planned at most {gate.limit:.3g} {gate.unit}"


def missed_gates(certificate: Certificate, *, kept: bool, name: str, exact: bool) -> GateMissedError:
    """Word the refusal of a folder.

    Args:
        certificate: Some of its gates were missed.
        kept: Whether the folder stays, as `NAME.rejected`.
        name: Of the export.
        exact: Whether the whole edit is compiled exactly, so that only rounding can be at fault.
    """
    missed = [result for result in certificate.gates if not result.passed]
    figures = "; ".join(map(_figure, missed))
    fate = f"kept as {name}.rejected" if kept else "nothing was published"
    runtime = certificate.environment.get("compute_dtype", "")
    advice = ". ".join(remedies(missed, exact=exact, files=certificate.dtype, runtime=runtime))
    return GateMissedError(
        f"{figures}; {fate}. What to do: {advice}", gates=", ".join(r.gate.name for r in missed)
    )
