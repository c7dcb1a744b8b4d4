"""Artifacts: immutable bytes, addressed by their content."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInfo:
    """A stored artifact; the resource is `artifacts/<sha256>`."""

    sha256: str
    size: int
    media_type: str
    create_time: str
