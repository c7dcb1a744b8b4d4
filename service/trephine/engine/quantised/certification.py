"""Does an export still carry its edit as a GGUF file? Measured against the quantised parent, intervened in.

Quantising moves the answers of a small model further than most edits do. So the file is not held against the
parent but against the parent quantised in the same way, in which the runtime intervenes: what is left between
the two is how the edit itself survived.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from trephine.domain.commands import Progress
from trephine.domain.exports import GgufType, QuantisedCopy
from trephine.domain.interventions import Intervention
from trephine.engine.certificates.certification import write_evidence
from trephine.engine.certificates.clean_process import patience_for, run_clean
from trephine.engine.certificates.firing import Acting
from trephine.engine.certificates.noise import stock_attention
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.staging import full_disk_refused
from trephine.engine.quantised.conversion import FOLDER, convert, title_of
from trephine.engine.quantised.twin import quantised_twin
from trephine.engine.runs.retain import RetainText, window_batches

SCRIPT = Path(__file__).parents[1] / "certificates" / "certifier_gguf.py"
_UNLOADABLE = (
    "stock transformers could not load or run the export's GGUF file in a clean process, and nothing was "
    "published. Export without --gguf, or with another type; free memory for a second model; and report it "
    "with what follows"
)


def quantised_copies(
    hosted: HostedModel,
    retain: RetainText,
    interventions: tuple[Intervention, ...],
    features: tuple[Acting, ...],
    folder: Path,
    kinds: Sequence[GgufType],
    work: Path,
    *,
    edit: str,
) -> Generator[Progress | None, None, tuple[QuantisedCopy, ...]]:
    """Write a folder's GGUF files into it, and measure each of them reloaded.

    Args:
        hosted: The loaded parent.
        retain: What is measured on.
        interventions: What the folder carries.
        features: Edited features of sets, whose firing tokens are measured apart.
        folder: The exported folder; files go to `gguf/TYPE.gguf` in it.
        kinds: Types of the files.
        work: The folder in which `write_evidence` left what the unquantised runtime answers.
        edit: Name of the edit, for the files' titles.

    Raises:
        UnsupportedOptionError: If architecture or tokenizer are not converted here.
        GateMissedError: If stock transformers cannot load a file.
        DiskFullError: If there is no room.
    """
    found = []
    for kind in kinds:
        file = folder / FOLDER / f"{kind}.gguf"
        with full_disk_refused():
            file.parent.mkdir(exist_ok=True)
        for done, name in enumerate(convert(hosted, folder, kind, file, title_of(folder, edit))):
            yield Progress(stage=f"gguf {kind}", done=done, total=0, detail=name)
        evidence = work / f"gguf-{kind}"
        evidence.mkdir()
        twin = yield from quantised_twin(hosted, kind)
        yield from write_evidence(twin, retain, interventions, features, evidence)
        del twin
        measured = yield from _measured(hosted, retain, file, evidence)
        shutil.rmtree(evidence)
        found.append(
            QuantisedCopy(kind=kind, file=f"{FOLDER}/{file.name}", size=file.stat().st_size, **measured)
        )
    return tuple(found)


def _measured(
    hosted: HostedModel, retain: RetainText, file: Path, evidence: Path
) -> Generator[Progress | None, None, dict[str, Any]]:
    request = evidence / "request.json"
    body = {
        "folder": str(file.parent),
        "file": file.name,
        "evidence": str(evidence),
        "unquantised": str(evidence.parent),
        "windows": [list(window) for window in retain.windows],
        "batches": [list(part) for part in window_batches(retain.windows)],
        "attention": stock_attention(hosted.model),
        "dtype": hosted.info.dtype,
        "threads": torch.get_num_threads(),
    }
    with full_disk_refused():
        request.write_text(json.dumps(body), encoding="utf-8")
    what, patience = f"certification of {file.name}", patience_for(hosted.info.n_parameters)
    arguments = ["-I", str(SCRIPT), str(request)]
    result = yield from run_clean(arguments, evidence, what, _UNLOADABLE, patience=patience)
    measured: dict[str, Any] = result["measurements"]
    return measured
