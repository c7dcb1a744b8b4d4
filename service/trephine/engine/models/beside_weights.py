"""What lies beside a model's weights: which files surely hold none, and what they were when it was loaded."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from trephine.domain.errors import BrokenCheckpointError
from trephine.engine.models.fingerprint import file_hash
from trephine.engine.models.folder_contents import contents_of

_MIB = 1 << 20
_KINDS: dict[str, int] = {
    # A tokenizer's table may take tens of MiB.
    **dict.fromkeys(("json", "txt"), 256 * _MIB),
    **dict.fromkeys(("bpe", "spm", "tiktoken", "vocab"), 32 * _MIB),
    **dict.fromkeys(("htm", "html", "ipynb", "md", "pdf", "rst", "tex"), 16 * _MIB),
    **dict.fromkeys(("bmp", "gif", "ico", "jpeg", "jpg", "png", "svg", "webp"), 16 * _MIB),
    **dict.fromkeys(("csv", "jsonl", "tsv"), 16 * _MIB),
    **dict.fromkeys(("bib", "cff", "cfg", "conf", "ini", "toml", "yaml", "yml"), 4 * _MIB),
    **dict.fromkeys(("j2", "jinja", "jinja2", "py", "sh"), 4 * _MIB),
}
"""Suffixes of files that hold no weights, and a size that none of them has."""
_NAMES: tuple[tuple[re.Pattern[str], int], ...] = (
    # Of all that ends on `.model` these alone are SentencePiece's; Mistral counts its versions behind that.
    (re.compile(r".*(tokenizer|piece|spm|bpe|unigram|vocab).*\.model(\.v\w+)?"), 32 * _MIB),
    (re.compile(r"(source|target)\.model"), 32 * _MIB),
    (
        re.compile(
            r"(licen[cs]es?|notices?|copying)([-_.][a-z0-9_-]+)?|copyright|patents|readme|authors|contributors|"
            r"citation|changelog|changes|use[-_]policy|acceptable[-_]use[-_]policy|model[-_]card|modelfile|version"
        ),
        _MIB,
    ),
)
"""The same of whole names, in small letters."""


def may_hold_weights(path: str, size: int) -> str:
    """Say why a file may hold weights; empty: it surely holds none.

    Only what is known is let through: weights come under more names than can be listed, data that an ONNX
    file leaves beside itself or an archive among them.

    Args:
        path: Relative to the model's folder.
        size: Its bytes.
    """
    name = PurePosixPath(path).name.lower()
    limit = _KINDS.get(PurePosixPath(name).suffix[1:])
    if limit is None:
        limit = next((most for pattern, most in _NAMES if pattern.fullmatch(name)), None)
    if limit is None:
        return "of no kind that is known to hold no weights"
    return f"larger than any file of its kind is ({limit // _MIB} MiB)" if size > limit else ""


def digests_beside(folder: Path) -> Generator[None, None, dict[str, str]]:
    """Hash all files of a folder that surely hold no weights, a piece a quantum: path -> sha256 in hex.

    What cannot be read is left out, as is a folder with a name that no export could hold: exports say so.
    Hidden files are never exported.
    """
    found: dict[str, str] = {}
    paths: tuple[str, ...] = ()
    with suppress(BrokenCheckpointError):
        paths = contents_of(folder)[0]
    for path in paths:
        if path.startswith(".") or "/." in path:
            continue
        with suppress(OSError):
            if not may_hold_weights(path, (folder / path).stat().st_size):
                found[path] = yield from file_hash(folder / path)
    return found
