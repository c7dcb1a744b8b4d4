"""Verdicts on predictors."""

from __future__ import annotations

from trephine.domain.standings import Standing
from trephine.v1 import circuit_verification_pb2 as pb

STANDINGS = {
    Standing.BEATS: pb.STANDING_BEATS,
    Standing.DOES_NOT_BEAT: pb.STANDING_DOES_NOT_BEAT,
    Standing.INCONCLUSIVE: pb.STANDING_INCONCLUSIVE,
}
