"""Signing exports as an identity, with tokens that live in memory and nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from trephine.app.jobs.requests import ExportRequest
from trephine.app.storage.files import write_whole
from trephine.domain.errors import InternalError, SigningIdentityError
from trephine.domain.exports import Export, ExportedFile
from trephine.domain.signing import SIGNATURE_NAME, SUMS_NAME, IdentitySigner

_READ_BYTES = 16 << 20
_MOST_TOKENS = 256


class IdentitySigning:
    """Keeps the tokens that came with requests until their operations end, and signs what they built.

    A token is never part of a stored request: an operation that outlives its server has lost it, and fails.
    """

    def __init__(self, signer: IdentitySigner | None) -> None:
        self._signer = signer
        self._tokens: dict[str, str] = {}

    async def require(self, request: ExportRequest, operation_id: str) -> None:
        """Look whether the export could be signed now, before work that takes long.

        Raises:
            SigningIdentityError: If there is nobody to sign as, or the token was lost with an earlier server.
            SigstoreUnreachableError: If Sigstore cannot be reached.
        """
        if request.sigstore:
            await self._required().require(self._token(request, operation_id))

    def keep(self, request: ExportRequest, operation_id: str) -> None:
        """Keep the request's token for when the export is built."""
        if not request.sigstore or request.identity_token is None:
            return
        while len(self._tokens) >= _MOST_TOKENS:  # of operations that were cancelled before they began
            del self._tokens[next(iter(self._tokens))]
        self._tokens[operation_id] = request.identity_token

    async def sign(self, request: ExportRequest, export: Export, folder: Path, operation_id: str) -> Export:
        """Sign a built folder if that was asked for; return the export with its signature's file.

        Raises:
            TrephineError: As `require` does; the folder is then not to be published.
        """
        if not request.sigstore:
            return export
        signed_by = await self._required().sign(folder, self._token(request, operation_id))
        files = await asyncio.to_thread(_enter, folder, export.files)
        return replace(export, files=files, signed=True, signed_by=signed_by)

    def forget(self, operation_id: str) -> None:
        """Drop the token of an operation that has ended."""
        self._tokens.pop(operation_id, None)

    def _required(self) -> IdentitySigner:
        if self._signer is None:
            raise InternalError("this server was built without a signer for identities")
        return self._signer

    def _token(self, request: ExportRequest, operation_id: str) -> str | None:
        if not request.token_given:
            return None
        token = request.identity_token or self._tokens.get(operation_id)
        if token is None:
            raise SigningIdentityError(
                "the server was restarted since, and identity tokens are never stored: export again with a "
                "new token"
            )
        return token


def _enter(folder: Path, files: tuple[ExportedFile, ...]) -> tuple[ExportedFile, ...]:
    """Enter the signature into the list of digests, which covers it, and make both durable."""
    signature = _described(folder, SIGNATURE_NAME)
    covered = [file for file in files if file.path not in (SIGNATURE_NAME, SUMS_NAME)]
    covered = sorted([*covered, signature], key=lambda file: file.path)
    listed = "".join(f"{file.sha256}  {file.path}\n" for file in covered)
    write_whole(folder / SUMS_NAME, listed.encode(), mode=0o644)
    return tuple(sorted([*covered, _described(folder, SUMS_NAME)], key=lambda file: file.path))


def _described(folder: Path, name: str) -> ExportedFile:
    digest, size = hashlib.sha256(), 0
    with (folder / name).open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
        os.fsync(file.fileno())
    return ExportedFile(path=name, size=size, sha256=digest.hexdigest())
