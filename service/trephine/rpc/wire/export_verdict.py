"""What the certificate of an export comes to."""

from __future__ import annotations

from trephine.domain.exports import ExportVerdict
from trephine.v1 import export_verdict_pb2 as pb

_VERDICTS: dict[ExportVerdict, pb.ExportVerdict.ValueType] = {
    "passed": pb.EXPORT_VERDICT_PASSED,
    "inconclusive": pb.EXPORT_VERDICT_INCONCLUSIVE,
    "failed": pb.EXPORT_VERDICT_FAILED,
}


def verdict_to_wire(verdict: ExportVerdict | None) -> pb.ExportVerdict.ValueType:
    """Write the word; None, where a certificate cannot be read, is unspecified."""
    return pb.EXPORT_VERDICT_UNSPECIFIED if verdict is None else _VERDICTS[verdict]
