"""A disk that fills up, as the kernel tells it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let the kernel refuse this process what goes beyond `size` bytes of a file, as a full disk would."""
    here = psutil.Process()
    soft, hard = here.rlimit(psutil.RLIMIT_FSIZE)
    here.rlimit(psutil.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        here.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
