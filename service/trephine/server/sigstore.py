"""Signing as an identity: each time a process of its own, which is killed when it takes too long."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trephine.domain.error_root import error_from
from trephine.domain.errors import InternalError, SigstoreUnreachableError
from trephine.domain.signing import SignedBy
from trephine.server.sigstore_signing import Order

_MODULE = "trephine.server.sigstore_signing"
CHECK_SECONDS = 60.0
SIGN_SECONDS = 1800.0
"""Every file of the folder is hashed first."""


class SubprocessSigstore:
    """An `IdentitySigner`. Its processes see the server's environment, where CI offers identities."""

    def __init__(self, *, token_file: Path | None = None, trust_config: Path | None = None) -> None:
        self._token_file = token_file
        self._trust_config = trust_config

    async def require(self, token: str | None) -> SignedBy:
        """Say as whom it would sign now.

        Raises:
            SigningIdentityError: If there is no token, or one that is not good.
            SigstoreUnreachableError: If Sigstore's services do not answer.
        """
        return await self._carry_out(self._order(None, token), CHECK_SECONDS)

    async def sign(self, folder: Path, token: str | None) -> SignedBy:
        """Write the folder's signature.

        Raises:
            TrephineError: As `require` does; nothing is written then.
        """
        return await self._carry_out(self._order(folder, token), SIGN_SECONDS)

    def _order(self, folder: Path | None, token: str | None) -> Order:
        return Order(
            folder=None if folder is None else str(folder),
            token=token,
            token_file=None if self._token_file is None else str(self._token_file),
            trust_config=None if self._trust_config is None else str(self._trust_config),
        )

    async def _carry_out(self, order: Order, seconds: float) -> SignedBy:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", _MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # the libraries' own words may quote what they were given
        )
        try:
            async with asyncio.timeout(seconds):
                output, _ = await process.communicate(json.dumps(asdict(order)).encode())
        except TimeoutError as error:
            raise SigstoreUnreachableError(
                f"Sigstore did not answer within {seconds:.0f} s, and nothing was published; a key file "
                "signs without a network: export again without Sigstore"
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return _signed_by(output)


def _signed_by(output: bytes) -> SignedBy:
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError as error:
        raise InternalError("the process that signs gave no answer; nothing was published") from error
    if "error" in answer:
        raise error_from(answer["error"]["reason"], answer["error"]["message"], {})
    return SignedBy(kind="sigstore", **answer)
