"""Running the offline verifier on a published folder, as anybody could."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trephine.domain.errors import InternalError, error_from
from trephine.domain.exports import VerifiedExport
from trephine.domain.signing import SignedBy

_MODULE = "trephine.client.verification"
_TIMEOUT_SECONDS = 600.0


async def verify_folder(
    folder: Path,
    *,
    signer: SignedBy | None = None,
    trust_config: Path | None = None,
    public_key: Path | None = None,
) -> VerifiedExport:
    """Check hashes, manifest, certificate, gates and signature of a folder.

    The verifier is a process of its own that knows neither this server nor its records.

    Args:
        folder: The folder.
        signer: Identity that must have signed with Sigstore; None: the signature alone is checked.
        trust_config: Of another Sigstore than the public one.
        public_key: PEM file of the key that must have signed; None: the one inside the folder will do.

    Raises:
        SignatureKindError: If the folder is signed with a key, and an identity is asked for.
        SigstoreUnreachableError: If an identity is asked for and no trust root is to be had.
        InternalError: If it gives no answer; that is never taken for a pass.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _MODULE,
        str(folder),
        "--json",
        *_signer_arguments(signer, trust_config),
        *([] if public_key is None else [f"--public-key={public_key}"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            output, errors = await process.communicate()
    except (TimeoutError, asyncio.CancelledError) as stopped:
        process.kill()
        await process.wait()
        if isinstance(stopped, TimeoutError):
            raise InternalError(f"the verifier gave no answer in {_TIMEOUT_SECONDS:.0f} s") from stopped
        raise
    return _outcome(output, errors)


def _signer_arguments(signer: SignedBy | None, trust_config: Path | None) -> list[str]:
    if signer is None:
        return []
    named = [f"--identity={signer.identity}", f"--identity-provider={signer.identity_provider}"]
    return named if trust_config is None else [*named, f"--sigstore-trust-config={trust_config}"]


def _outcome(output: bytes, errors: bytes) -> VerifiedExport:
    try:
        answer = json.loads(output)
        if "error" in answer:
            raise error_from(**answer["error"])
        return TypeAdapter(VerifiedExport).validate_python(answer)
    except (ValueError, ValidationError) as error:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise InternalError(f"the verifier gave no readable answer: {' '.join(last)}") from error
