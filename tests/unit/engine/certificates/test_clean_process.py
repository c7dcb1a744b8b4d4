"""A clean process that ends without a result: what is said of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trephine.domain.errors import DiskFullError, GateMissedError, TrephineError
from trephine.engine.certificates import clean_process
from trephine.engine.certificates.clean_process import run_clean
from trephine.engine.models.quanta import finish


@pytest.mark.parametrize(
    ("script", "free", "error"),
    [
        ("raise SystemExit(3)", 0, DiskFullError),
        ("raise SystemExit(3)", 1 << 30, GateMissedError),
        ("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", 1 << 30, DiskFullError),
    ],
)
def test_a_full_disk_is_told_also_where_the_process_could_not_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, free: int, error: type[TrephineError]
) -> None:
    """Its last words lie on the disk that is full; where there is room, it is the folder that is at fault."""
    usage = shutil._ntuple_diskusage(1 << 40, 0, free)  # type: ignore[attr-defined]
    monkeypatch.setattr(clean_process.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(error) as caught:
        finish(run_clean(["-c", script], tmp_path, "the check", "it cannot be loaded"))
    assert ("make room" in caught.value.message) == (error is DiskFullError)
