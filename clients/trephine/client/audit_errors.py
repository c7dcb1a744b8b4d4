"""Audits and checkpoints that cannot be relied on."""

from __future__ import annotations

from trephine.client.error_root import ErrorKind, TrephineError


class AuditorFailedError(TrephineError):
    """An auditor raised, hung, died or returned something that is no report. Never a pass."""

    kind = ErrorKind.PRECONDITION
    reason = "AUDITOR_FAILED"


class CheckpointUnverifiedError(TrephineError):
    """An exported folder whose hashes, manifest, certificate or gates do not hold."""

    kind = ErrorKind.DATA_LOSS
    reason = "CHECKPOINT_UNVERIFIED"
