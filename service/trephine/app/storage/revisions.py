"""Revisions of a folder in Hugging Face's cache: `snapshots/<commit>/`, named by the files of `refs/`."""

from __future__ import annotations

import re
from pathlib import Path

from trephine.domain.errors import InvalidRequestError, ModelNotFoundError

DEFAULT_REVISION = "main"
SHORTEST_PREFIX = 7
"""Characters of a commit that are enough, if no other one begins with them."""

_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def has_revisions(folder: Path) -> bool:
    """True for a folder of the cache, `models--org--name`; false for a plain model folder."""
    return (folder / "snapshots").is_dir() and not (folder / "config.json").is_file()


def commit_of(folder: Path, revision: str | None) -> str | None:
    """The commit that a revision of a folder means; None for a plain folder without one.

    Args:
        folder: A model folder, or one of the cache.
        revision: A commit, a prefix of one, or a name in `refs/`; None: `main`.

    Raises:
        InvalidRequestError: If the folder is plain and a revision is asked for.
        ModelNotFoundError: If the revision is not there, or begins several commits; those there are are
            listed.
    """
    if not has_revisions(folder):
        if revision is not None:
            raise InvalidRequestError(
                f"{folder.name} is a plain folder and has no revisions; leave revision out", field="revision"
            )
        return None
    commits, asked = _commits(folder), revision or DEFAULT_REVISION
    named = asked if asked in commits else _refs(folder).get(asked, asked)
    matching = [commit for commit in commits if _means(named, commit)]
    if len(matching) != 1:
        raise _missing(folder, asked, several=len(matching) > 1)
    return matching[0]


def _means(named: str, commit: str) -> bool:
    return named == commit or (len(named) >= SHORTEST_PREFIX and commit.startswith(named))


def _commits(folder: Path) -> tuple[str, ...]:
    found = (path.name for path in (folder / "snapshots").iterdir() if path.is_dir())
    return tuple(sorted(name for name in found if _COMMIT.fullmatch(name)))


def _refs(folder: Path) -> dict[str, str]:
    """Commits by name: `main`, `v1.0`, `refs/pr/3`."""
    refs = folder / "refs"
    return {
        path.relative_to(refs).as_posix(): path.read_text(encoding="ascii", errors="replace").strip()
        for path in refs.rglob("*")
        if path.is_file()
    }


def _missing(folder: Path, revision: str, *, several: bool) -> ModelNotFoundError:
    commits = _commits(folder)
    names = {name: commit for name, commit in sorted(_refs(folder).items()) if commit in commits}
    known = [f"{name} ({commit[:12]})" for name, commit in names.items()]
    known += [commit for commit in commits if commit not in names.values()]
    what = "begins several commits" if several else "is not among the revisions here"
    return ModelNotFoundError(
        f"{revision!r} {what}; {folder.name} has: {', '.join(known) or 'none, download one first'}",
        field="revision",
    )
