"""`python -m trephine.engine.attack REQUEST.json`: the attacks on one export, in a process of their own.

Lines of JSON go to stdout: progress, at last `{"result": {...}}`. The process ends when its stdin closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from trephine.domain.removal import Removal
from trephine.engine.attack.attack import attack
from trephine.engine.attack.request import AttackRequest
from trephine.engine.models.products import linears_in


def main() -> None:
    """Attack what the request names."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = TypeAdapter(AttackRequest).validate_json(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(request.threads)
    with linears_in(torch.float32, torch.device("cpu")):
        found = attack(request, lambda progress: say(asdict(progress)))
    say({"result": TypeAdapter(Removal).dump_python(found, mode="json")})


def say(line: dict[str, Any]) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    while os.read(0, 1):  # raw: a buffered reader would hold a lock at exit
        pass
    os._exit(70)


if __name__ == "__main__":
    main()
