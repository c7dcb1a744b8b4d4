"""Tensor deltas: an exported folder as its difference from the parent, applied without a server or torch.

A delta is a folder: `delta.json` says how every file of the export comes about, `delta.bin` holds what it
takes. A tensor is stored as the XOR with its parent (laid into the leading corner of its shape, where it has
grown), compressed: untouched numbers cost nearly nothing, and applying reproduces every byte. Each file's
sha256 is checked before the folder is renamed into place;
what a killed run left beside it goes with the next.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from trephine.client.delta_bytes import laid_out, read_header, read_range, xor
from trephine.client.digests import file_digest, listed_digests
from trephine.client.downloads import require_absent
from trephine.client.errors import HashMismatchError, ParentChangedError
from trephine.client.fetched_models import model_folder
from trephine.client.local_disk import unwritten
from trephine.client.local_errors import LocalFileError
from trephine.client.plain_json import parse_json
from trephine.client.signatures import SUMS
from trephine.client.temporary_siblings import temporary_folder
from trephine.client.verification import MANIFEST

SCHEMA = "trephine.delta/1"
DESCRIPTION, CONTENT = "delta.json", "delta.bin"
_PIECE = 1 << 20
_SHARD = ".safetensors"
_DAMAGED = (
    *(zlib.error, ValueError, KeyError, TypeError, IndexError, AttributeError),
    *(MemoryError, OverflowError),
)
"""What comes of a delta that somebody has altered; of a size that it makes up, too."""


# --- making --------------------------------------------------------------------------------------


def make_delta(parent: str | Path, exported: str | Path, out: str | Path) -> Path:
    """Write an exported folder as a delta of its parent.

    Args:
        parent: The folder that the export was compiled from, or the name of a fetched model.
        exported: A folder that `trephine export` made.
        out: Folder to make.

    Raises:
        ExportTargetExistsError: If `out` exists.
        ParentChangedError: If the parent's weights are not those that the export was compiled from.
        HashMismatchError: If a file of the export is not the one that was published, or is missing.
        LocalFileError: If a folder or shard cannot be read, or `exported` is no export.
        DiskFullError: If there is no room; nothing is left behind.
    """
    source, edited, target = model_folder(parent), Path(exported), Path(out)
    if not edited.is_dir():
        raise LocalFileError(f"there is no folder {edited}")
    for record in (MANIFEST, SUMS):
        if not (edited / record).is_file():
            raise LocalFileError(
                f"{edited} holds no {record}: give a folder that `trephine export` made, complete"
            )
    require_absent(target)
    _require_compiled_from(edited, source)
    with _written_whole(target) as folder:
        with (folder / CONTENT).open("wb") as content:
            files = [_described(source, edited, path, content) for path in _files(edited)]
        if not _as_published(edited, files):
            raise HashMismatchError(
                f"{edited} is not the export that was published: `trephine verify {edited}` names what "
                "differs; nothing was made"
            )
        needed = sorted({file["parent"] for file in files if "parent" in file})
        value = {
            "schema": SCHEMA,
            "parent": {name: file_digest(source / name)[1] for name in needed},
            "files": files,
        }
        (folder / DESCRIPTION).write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")
    return target


def _require_compiled_from(edited: Path, source: Path) -> None:
    """Refuse another model than the export's own: its delta would be the whole export, of no parent."""
    for name, digest in _parent_weights(edited).items():
        path = source / name
        if not path.is_file() or _digest(path) != digest:
            raise ParentChangedError(
                f"{name} of {source} is not the file that {edited} was compiled from, which its {MANIFEST} "
                "names; give the export's own parent",
                context={"file": name},
            )


def _as_published(folder: Path, files: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a folder's list of digests is that of its files, whose digests are known."""
    try:
        content = (folder / SUMS).read_bytes()
    except FileNotFoundError:
        return False
    return content == listed_digests({file["path"]: file["sha256"] for file in files}, apart=SUMS).encode()


def _parent_weights(edited: Path) -> dict[str, str]:
    """Return sha256 of every shard of the parent by its path, from the manifest."""
    try:
        recorded = parse_json((edited / MANIFEST).read_text(encoding="utf-8"))["parent"]
        weights: dict[str, str] = {
            file["path"]: file["sha256"]
            for file in recorded["files"]
            if file["path"].endswith(_SHARD) and file["path"] not in recorded["left_out"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocalFileError(
            f"{edited / MANIFEST} does not say what the export was compiled from ({error!r}): give a folder "
            "that `trephine export` made, as it was published"
        ) from error
    if not weights:
        raise LocalFileError(f"{edited / MANIFEST} names no {_SHARD} file of a parent: export the edit again")
    return weights


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _described(source: Path, edited: Path, name: str, content: BinaryIO) -> dict[str, Any]:
    """Describe one file: a parent's copy, a shard tensor by tensor, or stored whole."""
    size, digest = file_digest(edited / name)
    common = {"path": name, "size": size, "sha256": digest}
    for candidate in dict.fromkeys((name, "README.md")):
        path = source / candidate
        if path.is_file() and path.stat().st_size == size and file_digest(path)[1] == digest:
            return {**common, "kind": "copy", "parent": candidate}
    if name.endswith(_SHARD) and (source / name).is_file():
        return {
            **common,
            "kind": "shard",
            "parent": name,
            "parts": _parts(source / name, edited / name, content),
        }
    with (edited / name).open("rb") as file:
        return {**common, "kind": "whole", "parts": [_packed(_pieces(file, size), content)]}


def _parts(parent: Path, edited: Path, content: BinaryIO) -> list[dict[str, Any]]:
    """Describe a shard's header and tensors in the order of their bytes."""
    before, _ = read_header(parent)
    after, length = read_header(edited)
    with parent.open("rb") as old, edited.open("rb") as new:
        parts = [_stored(read_range(new, 0, length), content)]
        for name, tensor in sorted(after.items(), key=lambda item: item[1].start):
            data = read_range(new, tensor.start, tensor.end)
            known = before.get(name)
            if known is None:
                parts.append(_stored(data, content))
                continue
            base = laid_out(read_range(old, known.start, known.end), known.shape, tensor.shape)
            if base is None:
                parts.append(_stored(data, content))
            elif base == data:
                parts.append({"tensor": name, "shape": list(tensor.shape), "bytes": 0})
            else:
                parts.append(
                    {"tensor": name, "shape": list(tensor.shape)} | _stored(xor(base, data), content)
                )
    return parts


def _stored(data: bytes, content: BinaryIO) -> dict[str, Any]:
    return _packed((data,), content)


def _packed(pieces: Iterable[bytes], content: BinaryIO) -> dict[str, Any]:
    """Compress pieces into one stream; a file of gigabytes is never in memory."""
    engine, size = zlib.compressobj(6), 0
    for piece in pieces:
        size += content.write(engine.compress(piece))
    return {"bytes": size + content.write(engine.flush())}


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Read the next bytes of a file, as many of them as it has left."""
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece


# --- applying ------------------------------------------------------------------------------------


def apply_delta(delta: str | Path, parent: str | Path, out: str | Path) -> Path:
    """Rebuild the exported folder, byte for byte.

    Args:
        delta: A folder that `make_delta` made.
        parent: The folder that the export was compiled from, or the name of a fetched model.
        out: Folder to make.

    Raises:
        ExportTargetExistsError: If `out` exists.
        ParentChangedError: If the parent's files are not those that the delta was made from.
        HashMismatchError: If the delta does not give the announced bytes; nothing is left behind.
        LocalFileError: If the delta cannot be read, or was altered.
        DiskFullError: If there is no room; nothing is left behind.
    """
    root, source, target = Path(delta), model_folder(parent), Path(out)
    description = _description(root)
    _require_parent(description, source)
    require_absent(target)
    with _written_whole(target) as folder:
        try:
            with (root / CONTENT).open("rb") as content:
                for file in description["files"]:
                    _write(file, source, folder, content)
            if not _as_published(folder, description["files"]):
                raise ValueError(f"{SUMS} lists other files than it makes")
        except _DAMAGED as error:
            raise LocalFileError(
                f"{root} cannot be applied: {error!r}; it was altered or cut short: fetch it again"
            ) from error
    return target


def _description(root: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = parse_json((root / DESCRIPTION).read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        paths = [Path(file["path"]) for file in value["files"]] + [Path(name) for name in value["parent"]]
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            raise ValueError("a path leads out of the folder")
        made_of = [file["parent"] for file in value["files"] if file["kind"] != "whole"]
        if any(name not in value["parent"] for name in made_of):
            raise ValueError("a file is made of one whose digest it does not name")
        names = [file["path"] for file in value["files"]]
        if len(set(names)) < len(names):
            raise ValueError("a file is made twice")
        if any(file["size"] < 0 for file in value["files"]):
            raise ValueError("a file of fewer than no bytes")
        if not (root / CONTENT).is_file():
            raise ValueError(f"{CONTENT} is missing")
    except (OSError, *_DAMAGED) as error:
        raise LocalFileError(f"{root} is no delta: {error}") from error
    return value


def _require_parent(description: dict[str, Any], source: Path) -> None:
    for name, digest in description["parent"].items():
        path = source / name
        if not path.is_file() or _digest(path) != digest:
            raise ParentChangedError(
                f"{name} of {source} is not the file that the delta was made from; give its own parent",
                context={"file": name},
            )


def _write(file: dict[str, Any], source: Path, folder: Path, content: BinaryIO) -> None:
    target = folder / file["path"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if file["kind"] == "copy":
        shutil.copyfile(source / file["parent"], target)
    else:
        with target.open("wb") as written:
            for data in _rebuilt(file, source, content):
                written.write(data)
    if file_digest(target) != (file["size"], file["sha256"]):
        raise HashMismatchError(
            f"{file['path']} does not come out as the delta announces: it was altered or cut short; nothing "
            "was kept; fetch it again"
        )


def _rebuilt(file: dict[str, Any], source: Path, content: BinaryIO) -> Iterator[bytes]:
    """Yield a file's bytes, one tensor at a time."""
    if file["kind"] == "whole":
        yield from _unpacked_pieces(content, file["parts"][0]["bytes"], file["size"])
        return
    known, _ = read_header(source / file["parent"])
    with (source / file["parent"]).open("rb") as old:
        for part in file["parts"]:
            packed = content.read(part["bytes"])
            if "tensor" not in part:
                yield _unpacked(packed, file["size"])
                continue
            tensor = known[part["tensor"]]
            if prod(part["shape"]) > file["size"]:
                raise ValueError(f"{part['tensor']} would be larger than its file")
            base = laid_out(read_range(old, tensor.start, tensor.end), tensor.shape, tuple(part["shape"]))
            if base is None:
                raise KeyError(part["tensor"])
            yield base if not packed else xor(base, _unpacked(packed, len(base)))


def _digest(path: Path) -> str:
    """Hash a file.

    Raises:
        LocalFileError: If it cannot be read.
    """
    try:
        return file_digest(path)[1]
    except OSError as failure:
        raise LocalFileError(f"{path} cannot be read: {failure.strerror}") from failure


def _unpacked(packed: bytes, most: int) -> bytes:
    """Decompress no more than is announced: a few bytes may stand for any number of them."""
    engine = zlib.decompressobj()
    data = engine.decompress(packed, most + 1)  # one more, so that the end is seen
    if len(data) > most or not engine.eof:
        raise ValueError("compressed bytes that are not as many as announced")
    return data


def _unpacked_pieces(content: BinaryIO, packed: int, most: int) -> Iterator[bytes]:
    """Decompress the next so many bytes of a delta, a piece at a time and no more than is announced."""
    engine, left, given, made = zlib.decompressobj(), max(packed, 0), b"", 0
    while not engine.eof:
        if not given:
            given = content.read(min(left, _PIECE))
            left -= len(given)
        piece = engine.decompress(given, _PIECE)
        made += len(piece)
        if made > most or not (piece or given):
            raise ValueError("compressed bytes that are not as many as announced")
        yield piece
        given = engine.unconsumed_tail
    content.seek(left, 1)  # what an altered delta has left over belongs to no other file


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Give a folder that becomes the target once all of it is written, and is gone otherwise.

    Raises:
        ExportTargetExistsError: If something has the name by then.
        DiskFullError: If there is no room.
        LocalFileError: If something cannot be read or written.
    """
    try:
        with temporary_folder(target) as folder:
            yield folder
            require_absent(target)
            folder.rename(target)
    except OSError as failure:
        raise unwritten(target, failure) from failure
