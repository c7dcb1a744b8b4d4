"""Importing one dictionary of a SAELens release into a folder that loads offline ever after.

SAELens is imported in a process of its own: it takes seconds, prints, patches what it likes, and its loaders
may open pickles, which that process forbids. It needs the network; nothing else here does.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from trephine.domain.error_root import TrephineError, error_from
from trephine.domain.errors import (
    AlreadyExistsError,
    BrokenReplacementError,
    ReplacementNotFoundError,
    UnsafeReplacementError,
    UnsupportedOptionError,
    UnsupportedReplacementError,
)

SOURCE_FILE = "trephine-source.json"
"""Which release a folder came from."""
_FILES = ("cfg.json", "sae_weights.safetensors")
_CROSS_LAYER = re.compile(r"(?:^|[^a-z])clt(?:[^a-z]|$)", re.IGNORECASE)
_DONE, _FAILED = 0, 3
_NEAR = 5
"""Near matches that an unknown name is answered with."""


def import_release(
    release: str, sae_id: str, folder: Path, report: Callable[[str], None] | None = None
) -> Path:
    """Save one dictionary of a release as a SAELens folder; published by one rename.

    Args:
        release: As SAELens' list names it, or a hub repository.
        sae_id: Within the release.
        folder: Must not exist. A set is a folder with one such sub folder per layer.
        report: Is told what happens, a line at a time.

    Raises:
        AlreadyExistsError: If the folder exists.
        UnsupportedReplacementError: If it is a cross-layer transcoder, whose decoders SAELens adds up.
        UnsupportedOptionError: If SAELens is not installed.
        ReplacementNotFoundError: If the release or the id is unknown, or cannot be reached.
        UnsafeReplacementError: If its weights are pickles.
        BrokenReplacementError: If SAELens could not convert or save it.
    """
    report = report or _unheard
    _refuse_cross_layer(release, sae_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.exists():
            raise AlreadyExistsError(
                f"{folder.name} exists already; nothing is overwritten: name another folder",
                folder=folder.name,
            )
        sibling = folder.parent / f".trephine-tmp-{folder.name}"
        shutil.rmtree(sibling, ignore_errors=True)  # of a run that was killed; the lock is ours
        try:
            report(f"asking SAELens for {sae_id} of {release}")
            _save_apart(release, sae_id, sibling)
            _settle(sibling)
            sibling.rename(folder)
        finally:
            shutil.rmtree(sibling, ignore_errors=True)
    report(f"{sae_id} of {release} is in {folder}")
    return folder


def _unheard(line: str) -> None:
    """Takes the place of a listener."""


def _refuse_cross_layer(release: str, sae_id: str) -> None:
    if _CROSS_LAYER.search(release) or _CROSS_LAYER.search(sae_id):
        raise UnsupportedReplacementError(
            f"{sae_id} of {release} is a cross-layer transcoder; SAELens adds its decoders up, so that its "
            "reconstruction is lost. Download the repository's own files and load them as "
            "circuit_tracer_clt or gemma_scope_2_clt",
            release=release,
        )


def _save_apart(release: str, sae_id: str, sibling: Path) -> None:
    """Run this module in a process of its own and raise what it reports."""
    command = [sys.executable, "-m", "trephine.server.importing", release, sae_id, str(sibling)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == _DONE:
        return
    try:
        told = json.loads(done.stdout.strip().splitlines()[-1])
        error = error_from(told["reason"], told["message"], told["context"])
    except (IndexError, ValueError, KeyError, TypeError):
        error = BrokenReplacementError(
            f"SAELens ended without a word (exit code {done.returncode}): {done.stderr.strip()[-800:]}"
        )
    raise error


def _settle(folder: Path) -> None:
    """Check that everything is there, and make it durable before it is renamed.

    Raises:
        BrokenReplacementError: If SAELens wrote something else.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise BrokenReplacementError(f"SAELens saved no {', '.join(missing)}; its format may have changed")
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- in the process of its own -------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Save `RELEASE SAE_ID FOLDER`; a failure is one line of JSON on standard output."""
    release, sae_id, folder = arguments
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _save(release, sae_id, Path(folder))
    except TrephineError as error:
        told = {"reason": error.reason, "message": error.message, "context": error.context}
        sys.stdout.write(json.dumps(told) + "\n")
        return _FAILED
    return _DONE


def _save(release: str, sae_id: str, folder: Path) -> None:
    library = _sae_lens()
    dictionary = _from_pretrained(library, release, sae_id)
    try:
        folder.mkdir()
        dictionary.save_model(folder)
    except Exception as error:
        raise BrokenReplacementError(f"SAELens could not save {sae_id} of {release}: {error}") from error
    source = {"release": release, "sae_id": sae_id, "sae_lens": getattr(library, "__version__", "unknown")}
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _sae_lens() -> Any:
    try:
        import sae_lens  # type: ignore[import-untyped,unused-ignore]
        import torch
    except ImportError as error:
        raise UnsupportedOptionError(
            f"importing a release needs SAELens ({error}); install it with pip install 'trephine[fit]'"
        ) from error
    torch.load = _no_pickles
    return sae_lens


def _no_pickles(*_: object, **__: object) -> Any:
    raise UnsafeReplacementError(
        "the release keeps its weights as pickles, which are never opened: a pickle runs code. Convert it to "
        "safetensors with the library that wrote it, and load that folder"
    )


def _from_pretrained(library: Any, release: str, sae_id: str) -> Any:
    try:
        return library.SAE.from_pretrained(release=release, sae_id=sae_id, device="cpu")
    except TrephineError:
        raise
    except (ValueError, KeyError) as error:
        raise ReplacementNotFoundError(
            f"SAELens knows no {sae_id!r} of release {release!r}, or cannot convert it: {error}"
            f"{_nearest(release, sae_id)}",
            release=release,
            sae_id=sae_id,
        ) from error
    except Exception as error:
        # The hub's client raises its own, requests' and httpx' errors; what they share is no network.
        raise ReplacementNotFoundError(
            f"release {release!r} could not be reached ({type(error).__name__}: {error}). Importing is "
            "the one step that needs the network: check it, or import where there is one and copy the folder",
            release=release,
            sae_id=sae_id,
        ) from error


def _nearest(release: str, sae_id: str) -> str:
    """Name what SAELens' list has that looks like it; empty for nothing."""
    try:
        from sae_lens.loading.pretrained_saes_directory import (  # type: ignore[import-untyped,unused-ignore]
            get_pretrained_saes_directory,
        )
    except ImportError:
        return ""
    releases = get_pretrained_saes_directory()
    known = releases[release].saes_map if release in releases else releases
    near = difflib.get_close_matches(sae_id if release in releases else release, list(known), _NEAR, 0.5)
    return f" Near it are {', '.join(near)}." if near else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
