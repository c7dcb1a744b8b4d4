"""The distribution: one owner of the name, one version."""

from __future__ import annotations

import re
from importlib.metadata import distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_other_distribution_owns_the_name():
    """Only `trephine` installs anything below `trephine/`: a stranger's files would merge into it."""
    owners = set()
    for found in distributions():
        names = (found.read_text("top_level.txt") or "").split()
        files = found.files or []
        if "trephine" in names or any(file.parts[:1] == ("trephine",) for file in files):
            owners.add(found.metadata["Name"])
    assert owners <= {"trephine"}


def test_everything_of_ours_is_imported_from_here():
    """Every portion of the namespace lies in this checkout or in the one installed distribution."""
    import trephine

    portions = [Path(portion).resolve() for portion in trephine.__path__]
    outside = [portion for portion in portions if not portion.is_relative_to(ROOT)]
    assert len(outside) <= 1
    assert {portion.parent.name for portion in portions if portion.is_relative_to(ROOT)} <= {
        "protos", "service", "auditors", "clients",
    }  # fmt: skip


def test_version_is_the_changelog_s_head():
    """The newest entry of CHANGELOG.md is the version that is installed and declared."""
    heads = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    declared = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert heads[0] == declared.group(1) == version("trephine")
