"""Every version of every edit, one file an edit."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trephine.app.storage.files import carried_through
from trephine.app.storage.names import id_in, resource
from trephine.app.storage.records import RecordFolder
from trephine.domain.edits import Edit
from trephine.domain.errors import InvalidRequestError, RequestIdReusedError, ResourceNotFoundError

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierVersion:
    """A version that another one has followed, with the request that made it."""

    edit: Edit
    request_id: str
    body_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEdit:
    """An edit's latest version with the request that made it, and those before."""

    edit: Edit
    request_id: str
    body_sha256: str
    earlier: tuple[EarlierVersion, ...] = ()
    """Ascending."""

    @property
    def versions(self) -> tuple[Edit, ...]:
        """All versions, ascending."""
        return (*(one.edit for one in self.earlier), self.edit)

    def requests(self) -> Iterator[tuple[str, str, Edit]]:
        """Yield (request id, digest of the request, version that it made)."""
        for one in self.earlier:
            yield one.request_id, one.body_sha256, one.edit
        yield self.request_id, self.body_sha256, self.edit

    def followed_by(self, edit: Edit, request_id: str, body_sha256: str) -> StoredEdit:
        """Return it with one more version."""
        last = EarlierVersion(edit=self.edit, request_id=self.request_id, body_sha256=self.body_sha256)
        return replace(
            self,
            edit=edit,
            request_id=request_id,
            body_sha256=body_sha256,
            earlier=(*self.earlier, last),
        )


def split_version(name: str) -> tuple[str, int | None]:
    """Split `edits/ID@VERSION` into id and version; without `@` the version is None, the latest.

    Raises:
        InvalidRequestError: If it is no name of an edit.
    """
    plain, at, version = name.partition("@")
    identifier = id_in("edits", plain)
    if at and not _VERSION.fullmatch(version):
        raise InvalidRequestError(
            f"{name!r} is not a name like edits/ID or edits/ID@VERSION, with versions from 1", field="name"
        )
    return identifier, int(version) if at else None


def etag_of(edit: Edit) -> str:
    """Return a digest of everything that a version holds, for preconditions of updates."""
    told = (edit.create_time, edit.update_time, edit.author, edit.reason, *edit.evidence)
    held = "\0".join((edit.reference, edit.content_hash, *told))
    return hashlib.sha256(held.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class EditStore:
    """Edits by id. Names may be `edits/ID@VERSION`, `edits/ID` or the same without `edits/`."""

    def __init__(self, folder: Path) -> None:
        self._records = RecordFolder(folder, StoredEdit)
        self.writing = asyncio.Lock()
        """Held from reading what is there until the new version is written."""

    async def get(self, name: str) -> Edit:
        """Return the version that is named, or the latest.

        Raises:
            ResourceNotFoundError: If there is no such edit, or no such version.
        """
        _, version = split_version(name)
        stored = await self.stored(name)
        if version is None:
            return stored.edit
        if version > stored.edit.version:
            raise ResourceNotFoundError(
                f"edit {stored.edit.name} has versions 1 to {stored.edit.version}, not {version}",
                name=resource("edits", name.removeprefix("edits/")),
            )
        return stored.versions[version - 1]

    async def stored(self, name: str) -> StoredEdit:
        """Return an edit with all its versions.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        edit_id, _ = split_version(name)
        found = await asyncio.to_thread(self._records.read, edit_id)
        if found is None:
            raise missing(edit_id)
        return found

    async def all(self) -> tuple[StoredEdit, ...]:
        """Return every edit, by id."""
        return tuple((await asyncio.to_thread(self._records.all)).values())

    async def made_by(self, request_id: str, body_sha256: str) -> Edit | None:
        """Return the version that this very request made before, if it did.

        Raises:
            RequestIdReusedError: If the id came with another request.
        """
        if not request_id:
            return None
        for stored in await self.all():
            for known_id, digest, edit in stored.requests():
                if known_id == request_id and digest == body_sha256:
                    return edit
                if known_id == request_id:
                    raise RequestIdReusedError(
                        f"the request id {request_id} came with another edit before; use a new one",
                        name=resource("edits", edit.name),
                    )
        return None

    async def write(self, stored: StoredEdit) -> None:
        """Store an edit in the place of what its id held."""
        await carried_through(self._records.write, stored.edit.name, stored)

    async def delete(self, edit_id: str) -> bool:
        """Forget an edit with all versions; return whether there was one."""
        return await carried_through(self._records.delete, edit_id)

    def exists(self, edit_id: str) -> bool:
        """True if there is an edit of that id."""
        return self._records.exists(edit_id)


def missing(edit_id: str) -> ResourceNotFoundError:
    """Return the error for an edit that is not there."""
    return ResourceNotFoundError(f"there is no edit {edit_id}", name=resource("edits", edit_id))
