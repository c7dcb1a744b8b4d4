"""What lies beside the weights: certificate, manifest, list of digests."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trephine.domain.edits import Edit, EditSet
from trephine.domain.exports import Certificate, ExportedFile, ExportPlan
from trephine.engine.exports.signing import SUMS_NAME
from trephine.engine.models.folder_contents import contents_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry
from trephine.engine.weights.tensors import ROUNDING_SEED

CERTIFICATE_NAME = "certificate.json"
MANIFEST_NAME = "edit_manifest.json"
SCHEMA = "trephine.edit_manifest/1"
_READ_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentRecord:
    """The parent as it was read."""

    files: tuple[ExportedFile, ...]
    """Every file of its folder, those that were not copied included."""
    left_out: Mapping[str, str]
    """Relative path -> why it was not copied."""
    tensors: Mapping[str, str]
    """Name -> sha256 of its raw bytes."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, one line per entry, ASCII."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="ascii")


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write the certificate with its two words: what its gates and what its attacks, or none, come to."""
    fields = TypeAdapter(Certificate).dump_python(certificate, mode="json")
    words = {
        "verdict": certificate.verdict,
        "passed": certificate.passed,
        "fate": asdict(certificate.fate),
    }
    write_json(folder / CERTIFICATE_NAME, {"schema": "trephine.certificate/1", **fields, **words})


def write_manifest(
    folder: Path,
    *,
    hosted: HostedModel,
    edit: Edit,
    plan: ExportPlan,
    sets: Sequence[EditSet],
    parent: ParentRecord,
    entries: Sequence[TensorEntry],
    after: Mapping[str, str],
    drawn: Sequence[str],
    files: Sequence[ExportedFile],
) -> None:
    """Write the manifest: parent, edit, plan, every tensor before and after, every file.

    Args:
        folder: The checkpoint.
        hosted: The model that it was compiled from.
        edit: What was compiled.
        plan: The plan that fixed the gates.
        sets: The sets whose features were compiled, as they were loaded.
        parent: The parent as it was read.
        entries: All tensors.
        after: Name -> sha256 of the raw bytes in this folder.
        drawn: Tensors of which elements were rounded stochastically.
        files: Every other file of the folder but signature and list of digests.
    """
    value = {
        "schema": SCHEMA,
        "create_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "edit": TypeAdapter(Edit).dump_python(edit, mode="json"),
        "plan": TypeAdapter(ExportPlan).dump_python(plan, mode="json"),
        "sets": [asdict(one) for one in sets],
        "parent": {
            "name": hosted.info.name,
            "architecture": hosted.info.architecture,
            "weight_hash": hosted.info.weight_hash,
            "loaded_dtype": hosted.info.dtype,
            "files": [_file(f) for f in parent.files],
            "left_out": dict(parent.left_out),
        },
        "tensors": {
            e.name: {
                "file": e.file,
                "dtype": e.dtype,
                "shape": list(e.shape),
                "before": parent.tensors.get(e.name, ""),
                "after": after[e.name],
            }
            for e in entries
        },
        "rounding": {"seed": ROUNDING_SEED, "stochastic": sorted(drawn)},
        "files": [_file(f) for f in sorted(files, key=lambda f: f.path)],
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")}
        | {"python": platform.python_version(), "trephine": version("trephine")},
    }
    write_json(folder / MANIFEST_NAME, value)


def write_sums(folder: Path, files: Sequence[ExportedFile]) -> None:
    """List every file's digest, as `sha256sum --check` reads them."""
    lines = [f"{f.sha256}  {f.path}\n" for f in sorted(files, key=lambda f: f.path)]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def describe_files(folder: Path, *, skip: Sequence[str] = ()) -> Generator[None, None, list[ExportedFile]]:
    """Hash every file below a folder, one piece a quantum.

    Args:
        folder: Links are followed.
        skip: Relative paths to leave out.
    """
    found: list[ExportedFile] = []
    for name in contents_of(folder)[0]:
        if name not in skip:
            path = folder / name
            digest = yield from hash_file(path)
            found.append(ExportedFile(path=name, size=path.stat().st_size, sha256=digest))
    return found


def hash_file(path: Path) -> Generator[None, None, str]:
    """Hash a file, one piece a quantum."""
    digest, offset = hashlib.sha256(), 0
    while True:
        with path.open("rb") as reader:
            reader.seek(offset)
            piece = reader.read(_READ_BYTES)
        digest.update(piece)
        offset += len(piece)
        yield
        if len(piece) < _READ_BYTES:
            return digest.hexdigest()


def _file(file: ExportedFile) -> dict[str, str | int]:
    return {"path": file.path, "size": file.size, "sha256": file.sha256}
