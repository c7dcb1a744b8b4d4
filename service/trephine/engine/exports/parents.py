"""Which files of a parent folder belong into its edited copy."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

from trephine.domain.errors import ParentChangedError
from trephine.engine.certificates.card import CARD_NAME, PARENT_CARD_NAME
from trephine.engine.exports.adapter import FOLDER as ADAPTER_FOLDER
from trephine.engine.exports.manifest import CERTIFICATE_NAME, MANIFEST_NAME
from trephine.engine.exports.signing import PUBLIC_KEY_NAME, SIGNATURE_NAME, SUMS_NAME
from trephine.engine.models.beside_weights import may_hold_weights
from trephine.engine.models.fingerprint import file_hash
from trephine.engine.models.folder_contents import contents_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry

_OWN = frozenset(
    {CERTIFICATE_NAME, MANIFEST_NAME, PUBLIC_KEY_NAME, SIGNATURE_NAME, SUMS_NAME, PARENT_CARD_NAME}
)
_AGAIN = "load the model again, so that what is measured is what is exported, or put the file back"


def sort_files(folder: Path, entries: Mapping[str, TensorEntry]) -> tuple[dict[str, str], dict[str, str]]:
    """Decide about every file of a parent.

    Beside the shards only what is known to hold no weights is copied: other weights (pickles, GGUF, ONNX with
    its data, archives, shards that stock transformers does not load) would carry the unedited model. So is an
    earlier export's adapter left out, all of whose folder is of that edit, and what is no file (a link that
    leads nowhere, a pipe).

    Returns:
        Relative path -> name in the copy (the parent's card is renamed), and relative path -> why left out.

    Raises:
        BrokenCheckpointError: If a folder inside cannot be looked into, or a name is no UTF-8.
    """
    shards = {entry.file for entry in entries.values()}
    copied: dict[str, str] = {}
    files, left_out = contents_of(folder)
    for path in files:
        reason = "" if path in shards else _why_not(path, (folder / path).stat().st_size)
        if reason:
            left_out[path] = reason
        else:
            copied[path] = PARENT_CARD_NAME if path == CARD_NAME else path
    return copied, left_out


def copied_bytes(folder: Path, entries: Mapping[str, TensorEntry]) -> int:
    """Predict the size of the copy."""
    copied, _ = sort_files(folder, entries)
    return sum((folder / path).stat().st_size for path in copied)


def require_as_loaded(hosted: HostedModel, entries: Mapping[str, TensorEntry]) -> Generator[None, None, None]:
    """Hold the files beside the weights against those that the model was loaded with, a piece a quantum.

    Tokenizer and config are in memory as they were then: what is measured is of them, and the folder would
    hold others.

    Args:
        hosted: The loaded parent.
        entries: Its tensors.

    Raises:
        ParentChangedError: Naming a file that was changed, came or went.
    """
    shards = {entry.file for entry in entries.values()}
    copied, _ = sort_files(hosted.folder, entries)
    for path in copied:
        if path in shards:
            continue
        if path not in hosted.beside:
            raise ParentChangedError(
                f"{path} came into the parent's folder after the model was loaded: load the model again, so "
                "that what is measured is what is exported, or take the file out",
                file=path,
            )
        if (yield from file_hash(hosted.folder / path)) != hosted.beside[path]:
            raise ParentChangedError(
                f"{path} in the parent's folder is not what it was when the model was loaded: {_AGAIN}",
                file=path,
            )
    gone = [path for path in hosted.beside if not (path in copied or _why_not(path, 0))]
    if gone:
        raise ParentChangedError(
            f"{gone[0]} is no longer in the parent's folder as it was when the model was loaded: {_AGAIN}",
            file=gone[0],
        )


def _why_not(path: str, size: int) -> str:
    """Say why a file that is no shard is not copied; empty: it is."""
    if any(part.startswith(".") for part in path.split("/")):
        return "hidden"
    if path in _OWN:
        return "belongs to an earlier export; its digest is recorded"
    if path.startswith(f"{ADAPTER_FOLDER}/"):
        return "an adapter that makes the parent of its own parent; its digest is recorded"
    if path.endswith(".index.json") and path != "model.safetensors.index.json":
        return "index of other weights"
    reason = may_hold_weights(path, size)
    return f"{reason}; weights would be unedited" if reason else ""
