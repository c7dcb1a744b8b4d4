"""Whether what edits rest on lies on this server.

References have been checked for their form. A record may lie on another server, or be deleted after the edit
was made on it: one that is not here is told, and kept. What cannot be right is refused: an audit that is here
and does not hold the finding that is named.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

from trephine.app.audits import Audits
from trephine.app.edits.edit_evaluations import EditEvaluations
from trephine.app.edits.edits import Edits
from trephine.app.features.feature_indexes import FeatureIndexes
from trephine.app.storage.artifacts import ArtifactStore
from trephine.domain.edits import Edit
from trephine.domain.errors import CorruptRecordError, InvalidRequestError, ResourceNotFoundError

Lookup = Callable[[str], Awaitable[object]]
"""Finds a record by its resource name, or raises ResourceNotFoundError."""

_DIGEST = re.compile(r"(?:[^@]+@)?sha256:([0-9a-f]{64})")
_LISTED = 5


class EditEvidence:
    """Looks references up."""

    def __init__(
        self,
        records: Mapping[str, Lookup],
        *,
        audits: Audits,
        edits: Edits,
        evaluations: EditEvaluations,
        indexes: FeatureIndexes,
        artifacts: ArtifactStore,
    ) -> None:
        """Know where to look.

        Args:
            records: Collection -> lookup, of those that are named by an id alone.
            audits: For findings.
            edits: For versions.
            evaluations: Of edits, and the data that they were made on.
            indexes: Of features, and the texts that they were made of.
            artifacts: What was uploaded.
        """
        self._records = dict(records)
        self._audits = audits
        self._edits = edits
        self._evaluations = evaluations
        self._indexes = indexes
        self._artifacts = artifacts

    async def checked(self, names: Sequence[str], field: str = "evidence") -> tuple[str, ...]:
        """Return the names as they are, if none of them contradicts a record that is here.

        Raises:
            InvalidRequestError: If an audit of this server has no such finding.
        """
        for place, name in enumerate(names):
            audit, _, fingerprint = name.partition("#")
            if not fingerprint:
                continue
            try:
                report = await self._audits.get(audit)
            except ResourceNotFoundError:
                continue  # told by `warnings`
            known = [finding.fingerprint for finding in report.outcome.findings]
            if fingerprint not in known:
                has = ", ".join(known[:_LISTED]) or "none"
                raise InvalidRequestError(
                    f"{audit} has no finding {fingerprint}; it has {has}. Name one of these, or the audit "
                    "alone",
                    field=f"{field}[{place}]",
                )
        return tuple(names)

    async def warnings(self, edit: Edit) -> tuple[str, ...]:
        """Say of every reference that is not on this server what to do; empty if all are."""
        missing = [name for name in edit.evidence if not await self._here(name)]
        return tuple(_told(name) for name in missing)

    async def _here(self, name: str) -> bool:
        try:
            data = _DIGEST.fullmatch(name)
            if data is not None:
                return await self._known_data(data[1])
            record = name.partition("#")[0]
            collection = record.partition("/")[0]
            if collection == "audits":
                await self._audits.get(record)
            elif "/evaluations/" in record:
                await self._evaluations.get(record)
            elif collection == "edits":
                await self._edits.get(record)
            else:
                await self._records[collection](record)
        except (ResourceNotFoundError, KeyError):
            return False
        except CorruptRecordError:
            return True  # it is here, and whoever reads it is told
        return True

    async def _known_data(self, digest: str) -> bool:
        """Whether data of that digest was uploaded, indexed, or an edit was evaluated on it."""
        try:
            await self._artifacts.stat(digest)
        except ResourceNotFoundError:
            indexed = {one.info.corpus_sha256 for one in await self._indexes.list()}
            return digest in indexed or digest in await self._evaluations.data()
        return True


def _told(name: str) -> str:
    if _DIGEST.fullmatch(name):
        return (
            f"{name}: nothing that was uploaded to this server, indexed or evaluated on has this digest. It "
            "is kept as it is; if it should be here, compare the digest (sha256sum FILE) and update the "
            "edit's evidence"
        )
    return (
        f"{name} is not on this server. It is kept as it is, for the record may lie on another server or be "
        "deleted; if it should be here, compare the name and update the edit's evidence"
    )
