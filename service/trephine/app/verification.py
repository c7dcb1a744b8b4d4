"""Running the offline verifier on a published folder, as anybody could."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trephine.domain.errors import InternalError
from trephine.domain.exports import VerifiedExport

_MODULE = "trephine.client.verification"
_TIMEOUT_SECONDS = 600.0


async def verify_folder(folder: Path) -> VerifiedExport:
    """Check hashes, manifest, certificate, gates and signature of a folder.

    The verifier is a process of its own that knows neither this server nor its records.

    Raises:
        InternalError: If it gives no answer; that is never taken for a pass.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _MODULE,
        str(folder),
        "--json",
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


def _outcome(output: bytes, errors: bytes) -> VerifiedExport:
    try:
        return TypeAdapter(VerifiedExport).validate_python(json.loads(output))
    except (ValueError, ValidationError) as error:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise InternalError(f"the verifier gave no readable answer: {' '.join(last)}") from error
