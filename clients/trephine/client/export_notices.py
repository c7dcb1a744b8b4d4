"""What is said of an export before and after it comes home."""

from __future__ import annotations

import warnings

from trephine.client.errors import CheckpointUnverifiedError
from trephine.client.types import Export, ExportVerdict


def require_certified(export: Export) -> None:
    """Refuse an export whose gates do not all hold; one that is inconclusive may be had.

    Raises:
        CheckpointUnverifiedError: If its certificate does not pass.
    """
    certificate = export.certificate
    older = certificate.verdict is ExportVerdict.UNSPECIFIED and not certificate.passed
    if older or certificate.verdict is ExportVerdict.FAILED:
        missed = ", ".join(result.gate.name for result in certificate.gates if not result.passed)
        raise CheckpointUnverifiedError(f"{export.name} missed its gates ({missed}); nothing was downloaded")


def tell_doubt(export: Export) -> None:
    """Warn whoever called the caller that an export is no pass: it came home all the same."""
    certificate = export.certificate
    if certificate.verdict is ExportVerdict.INCONCLUSIVE:
        warnings.warn(f"{export.name} is INCONCLUSIVE: {certificate.doubt}", stacklevel=3)


def reused(export: Export) -> str:
    """Say that nothing was compiled."""
    return f"already published as {export.name}: fetched as it is"


def tell_reuse(export: Export) -> None:
    """Warn whoever called the caller, and named the export, that it may be of other options than theirs."""
    warnings.warn(f"{reused(export)}, whatever options it was made with", stacklevel=3)
