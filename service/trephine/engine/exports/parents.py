"""Which files of a parent folder belong into its edited copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trephine.engine.certificates.card import CARD_NAME, PARENT_CARD_NAME
from trephine.engine.exports.adapter import FOLDER as ADAPTER_FOLDER
from trephine.engine.exports.manifest import CERTIFICATE_NAME, MANIFEST_NAME
from trephine.engine.exports.parent_files import contents_of
from trephine.engine.exports.signing import PUBLIC_KEY_NAME, SIGNATURE_NAME, SUMS_NAME
from trephine.engine.models.shards import TensorEntry

_WEIGHTS = frozenset(
    f".{kind}"
    for kind in (
        *("bin", "ckpt", "gguf", "ggml", "h5", "joblib", "mlmodel", "msgpack", "npy", "npz", "onnx"),
        *("onnx_data", "ot", "pickle", "pkl", "pt", "pth", "safetensors", "tflite"),
    )
)
_OWN = frozenset(
    {CERTIFICATE_NAME, MANIFEST_NAME, PUBLIC_KEY_NAME, SIGNATURE_NAME, SUMS_NAME, PARENT_CARD_NAME}
)


def sort_files(folder: Path, entries: Mapping[str, TensorEntry]) -> tuple[dict[str, str], dict[str, str]]:
    """Decide about every file of a parent.

    Other weights (pickles, GGUF, ONNX, shards that stock transformers does not load) would carry the
    unedited model and are left out; so is an earlier export's adapter, all of whose folder is of that edit.
    What is no file (a link that leads nowhere, a pipe) is left out, too.

    Returns:
        Relative path -> name in the copy (the parent's card is renamed), and relative path -> why left out.

    Raises:
        BrokenCheckpointError: If a folder inside cannot be looked into, or a name is no UTF-8.
    """
    shards = {entry.file for entry in entries.values()}
    copied: dict[str, str] = {}
    files, left_out = contents_of(folder)
    for path in files:
        reason = _why_not(path, shards)
        if reason:
            left_out[path] = reason
        else:
            copied[path] = PARENT_CARD_NAME if path == CARD_NAME else path
    return copied, left_out


def copied_bytes(folder: Path, entries: Mapping[str, TensorEntry]) -> int:
    """Predict the size of the copy."""
    copied, _ = sort_files(folder, entries)
    return sum((folder / path).stat().st_size for path in copied)


def _why_not(path: str, shards: set[str]) -> str:
    if any(part.startswith(".") for part in path.split("/")):
        return "hidden"
    if path in _OWN:
        return "belongs to an earlier export; its digest is recorded"
    if path.startswith(f"{ADAPTER_FOLDER}/") and path not in shards:
        return "an adapter that makes the parent of its own parent; its digest is recorded"
    if Path(path).suffix.lower() in _WEIGHTS and path not in shards:
        return "other weights, which would be unedited"
    if path.endswith(".index.json") and path != "model.safetensors.index.json":
        return "index of other weights"
    return ""
