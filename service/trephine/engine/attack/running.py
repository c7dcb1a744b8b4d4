"""The attacks as the engine sees them: contexts chosen, the process run, its word brought back."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.interventions import Intervention
from trephine.domain.removal import FEWEST_STEPS, Removal
from trephine.engine.attack.reading import edited_layers, read_directions
from trephine.engine.attack.request import BUDGETS, TRAINING_STEPS, AttackRequest
from trephine.engine.certificates.clean_process import patience_for, run_clean
from trephine.engine.certificates.export_texts import ExportTexts
from trephine.engine.certificates.firing import Acting, firing_masks
from trephine.engine.certificates.noise import stock_attention
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.staging import full_disk_refused

MODULE = "trephine.engine.attack"
WINDOW = 64
MOST_WINDOWS = 16
CANDIDATE_TOKENS = 4096
"""Text that is searched for tokens on which edited features fire."""
_FAILED = (
    "the attack on the exported folder ended without a result in its process, and nothing was published. "
    "Free memory for a model that is trained, or export without --attack; report it with what follows"
)

Windows = list[tuple[int, ...]]


def attacked(
    hosted: HostedModel,
    texts: ExportTexts,
    interventions: tuple[Intervention, ...],
    features: tuple[Acting, ...],
    folder: Path,
    work: Path,
    *,
    budgets: Sequence[float] = BUDGETS,
    until_decided: bool = False,
    training_steps: int = TRAINING_STEPS,
) -> Generator[Progress | None, None, Removal]:
    """Attack an exported folder in a process of its own, which ends with this generator.

    Args:
        hosted: The loaded parent.
        texts: Of the export; both parts give contexts, for the attack promises nothing of a fit.
        interventions: What the folder carries.
        features: Edited features of sets, whose firing tokens are attacked. None: the tokens on which the
            edit moves the answer most.
        folder: The exported folder.
        work: An empty folder for what is in between.
        budgets: Norms of the perturbations over the residual's, ascending.
        until_decided: Stop at the first attack that succeeds.
        training_steps: Of every training, benign and few-shot.

    Raises:
        GateMissedError: If the process ends without a result.
        DiskFullError: If there is no room.
        DeadlinePassedError: If it does not finish in time.
    """
    windows = context_windows(hosted, texts)
    masks = yield from firing_masks(hosted, windows, features, interventions)
    if not features:
        masks = [torch.ones(len(window), dtype=torch.bool) for window in windows]
    chosen = _densest(masks)
    directions = read_directions(hosted, interventions).contiguous()
    with full_disk_refused():
        save_file({"read": directions}, work / "directions.safetensors")
    request = AttackRequest(
        exported=str(folder),
        parent=str(hosted.folder.resolve()),
        directions=str(work / "directions.safetensors"),
        layers=edited_layers(interventions),
        windows=tuple(windows[number] for number in chosen),
        firing=tuple(tuple(masks[number].tolist()) for number in chosen),
        attention=stock_attention(hosted.model),
        threads=torch.get_num_threads(),
        budgets=tuple(budgets),
        until_decided=until_decided,
        training_steps=training_steps,
    )
    path = work / "request.json"
    with full_disk_refused():
        path.write_text(json.dumps(asdict(request)), encoding="utf-8")
    patience = max(1.0, training_steps / TRAINING_STEPS) * patience_for(hosted.info.n_parameters)
    arguments, late = ["-I", "-m", MODULE, str(path)], _late(training_steps)
    found = yield from run_clean(arguments, work, "the attack", _FAILED, patience=patience, late=late)
    return TypeAdapter(Removal).validate_python(found)


def _late(steps: int) -> str:
    fewer = f"ask for fewer --attack-steps than {steps}, " if steps > FEWEST_STEPS else ""
    return f"{fewer}free processors for it, or export without --attack"


def context_windows(hosted: HostedModel, texts: ExportTexts) -> Windows:
    """Cut both parts of the texts into equally long windows, the measured part first."""
    size = min(WINDOW, hosted.info.context_length)
    whole = dict.fromkeys((*texts.measured.windows, *texts.calibration.windows))
    pieces = [w[start : start + size] for w in whole for start in range(0, len(w), size)]
    return [piece for piece in pieces if len(piece) == size][: CANDIDATE_TOKENS // size]


def _densest(masks: Sequence[Tensor]) -> list[int]:
    """Choose the windows with most tokens, position 0 apart; in the text's order where they tie."""
    counts = [int(mask[1:].sum()) for mask in masks]
    order = sorted(range(len(masks)), key=lambda number: -counts[number])
    return order[:MOST_WINDOWS]
