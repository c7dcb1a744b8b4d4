"""ExportClassifier: the exported shards as they are, one more with the head, and a reload that proves it.

Stock sequence classifiers take the last token that is no padding, behind the final norm, and their `score`
has no bias: a head that reads anything else has no stock form. A reward has the form of stock reward models:
one output, compared with a threshold that stands beside it in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from trephine.domain.classifier_exports import (
    FEWEST_AGREEING,
    ClassifierExport,
    ExportClassifier,
    checked_texts,
    require_stock,
)
from trephine.domain.commands import Progress
from trephine.domain.errors import GateMissedError, HeadNotStockError
from trephine.engine.certificates.clean_process import patience_for, run_clean
from trephine.engine.exports import manifest
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.models.shards import INDEX_NAME, SINGLE_NAME, read_entries
from trephine.engine.models.staging import copy_file, full_disk_refused, sync_tree
from trephine.engine.spurious.heads import SCORE, STOCK
from trephine.engine.spurious.pooling import pool_texts

SCRIPT = Path(__file__).with_name("classifier_check.py")
CLASSIFIER_NAME = "classifier.json"
_REWARD = "reward"
"""What the one output is called: it stands for no label by itself."""
_BATCH = 8
"""Texts of one padded batch of the check."""
_HEAD_FILE = "score.safetensors"
_BODY_FILE = "body.safetensors"
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "spiece")


def export_classifier(
    session: Session, command: ExportClassifier
) -> Generator[Progress | None, None, ClassifierExport]:
    """Write, reload and compare; one file or forward pass a quantum.

    Raises:
        HeadNotStockError: If the head or the model has no stock form.
        GateMissedError: If stock transformers cannot load the folder, or it decides otherwise.
        DiskFullError: If there is no room.
    """
    hosted = session.require_model()
    architecture = stock_architecture(hosted, command)
    source = Path(command.parent) if command.parent else hosted.folder
    target, score = Path(command.folder), score_tensor(command)
    with full_disk_refused():
        target.mkdir(parents=True)
    yield from _copy(source, target)
    with full_disk_refused():
        _write_head(hosted, source, target, command, score, architecture)
    difference, alone, agreeing, checked = yield from _compare(hosted, command, target, score)
    _require_agreement(alone, agreeing, checked)
    with full_disk_refused():
        told: dict[str, Any] = {"removal": command.removal, "export": command.export}
        told["parent"] = hosted.info.weight_hash
        told |= _decided(command)
        told |= {"checked_texts": checked, "largest_difference": difference, "agreeing": agreeing}
        (target / CLASSIFIER_NAME).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    files = yield from manifest.describe_files(target)
    yield from sync_tree(target)
    return ClassifierExport(
        name=command.name,
        removal=command.removal,
        export=command.export,
        architecture=architecture,
        labels=command.head.labels,
        files={file.path: file.sha256 for file in files},
        sizes={file.path: file.size for file in files},
        checked_texts=checked,
        largest_difference=difference,
        agreeing=agreeing,
        threshold=command.threshold,
    )


def stock_architecture(hosted: HostedModel, command: ExportClassifier) -> str:
    """Return the class that loads the folder.

    Raises:
        HeadNotStockError: Saying what is not stock about the head, or that the model has no such class.
    """
    require_stock(command.head, reward=command.threshold is not None)
    found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(hosted.model.config), None)
    if found is None:
        raise HeadNotStockError(
            f"stock transformers have no sequence classifier for {hosted.info.architecture}"
        )
    return str(found.__name__)


def score_tensor(command: ExportClassifier) -> Tensor:
    """Return what the folder's head is: float32 `(n_labels, d_model)`, or `(1, d_model)` of a reward."""
    weight = torch.tensor(command.head.weight, dtype=torch.float32)
    return weight if command.threshold is None else weight.diff(dim=0)


def decisions(command: ExportClassifier, logits: Tensor) -> Tensor:
    """Return the labels' numbers, int64 `(n,)`, that logits `(n, n_labels)` or rewards `(n, 1)` stand for."""
    return logits.argmax(1) if command.threshold is None else (logits[:, 0] > command.threshold).long()


def _decided(command: ExportClassifier) -> dict[str, Any]:
    """Say what the one output of a reward stands for; stock configurations have no place for it."""
    if command.threshold is None:
        return {}
    below, above = command.head.labels
    return {"threshold": command.threshold, "at_most_threshold": below, "above_threshold": above}


def _copy(source: Path, target: Path) -> Generator[Progress | None, None, None]:
    """Copy weights and tokenizer; a single file is renamed, since nothing beside it would be loaded."""
    shards = sorted({entry.file for entry in read_entries(source).values()})
    others = [
        path.name
        for path in sorted(source.iterdir())
        if path.is_file() and path.name.startswith(_TOKENIZER) and path.suffix != ".safetensors"
    ]
    total = len(shards) + len(others)
    for done, name in enumerate([*shards, *others]):
        yield Progress(stage="copy", done=done, total=total, detail=name)
        yield from copy_file(source / name, target / (_BODY_FILE if name == SINGLE_NAME else name))


def _write_head(
    hosted: HostedModel,
    source: Path,
    target: Path,
    command: ExportClassifier,
    score: Tensor,
    architecture: str,
) -> None:
    entries = read_entries(source)
    where = {name: _BODY_FILE if entry.file == SINGLE_NAME else entry.file for name, entry in entries.items()}
    size = sum(entry.end - entry.start for entry in entries.values()) + 4 * score.numel()
    index = {"metadata": {"total_size": size}, "weight_map": {**where, SCORE: _HEAD_FILE}}
    save_file({SCORE: score.contiguous()}, target / _HEAD_FILE, metadata={"format": "pt"})
    (target / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    labels = command.head.labels if command.threshold is None else (_REWARD,)
    config |= {
        "architectures": [architecture],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        # Pipelines give the output of a regression as it is, as the threshold needs it.
        "problem_type": "single_label_classification" if command.threshold is None else "regression",
    }
    config["pad_token_id"] = _padding(hosted, config.get("pad_token_id"))
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _padding(hosted: HostedModel, configured: int | None) -> int:
    """Return the id that the last token of a text is told from: what its tokenizer pads with, if anything.

    A stock classifier pools at the last token that is not it; with another one a shorter text of a batch is
    decided by its padding.
    """
    pad = hosted.tokenizer.pad_token_id
    pad = configured if pad is None else pad
    return next(iter(hosted.info.eos_token_ids), 0) if pad is None else int(pad)


def _compare(
    hosted: HostedModel, command: ExportClassifier, target: Path, score: Tensor
) -> Generator[Progress | None, None, tuple[float, int, int, int]]:
    """Return the largest difference of a logit, texts that agree one by one, in batches as well, and all."""
    given, special_tokens = checked_texts(command.texts), command.head.special_tokens
    texts = [tuple(hosted.encode(text, special_tokens=special_tokens)) for text in given]
    expected = yield from _expected(hosted, command, texts, score)
    with TemporaryDirectory(prefix="trephine-classifier-") as folder:
        work = Path(folder)
        request: dict[str, Any] = {"folder": str(target), "texts": list(given)}
        request |= {"dtype": hosted.info.dtype, "threads": torch.get_num_threads()}
        request |= {"batch": _BATCH, "context": hosted.info.context_length}
        path = work / "request.json"
        with full_disk_refused():
            path.write_text(json.dumps(request), encoding="utf-8")
        found = yield from run_clean(
            ["-I", str(SCRIPT), str(path)],
            work,
            "the check of a classifier",
            "stock transformers could not load or run the classifier in a clean process, and nothing was "
            "published. Free memory for a second model and try again; report it with what follows",
            patience=patience_for(hosted.info.n_parameters),
        )
    _require_same_tokens(hosted, texts, [tuple(ids) for ids in found["ids"]])
    wanted = decisions(command, expected)
    alone, padded = (torch.tensor(found[name]) for name in ("logits", "padded_logits"))
    right = decisions(command, alone) == wanted
    both = right & (decisions(command, padded) == wanted)
    difference = float((torch.stack([alone, padded]) - expected).abs().max())
    return difference, int(right.sum()), int(both.sum()), len(texts)


def _require_agreement(alone: int, agreeing: int, checked: int) -> None:
    """Refuse a folder that decides otherwise than what was measured.

    Args:
        alone: Texts that agree one by one.
        agreeing: Those that agree in padded batches, too.
        checked: All.

    Raises:
        GateMissedError: Saying which of the two it is, and what to do.
    """
    if alone < FEWEST_AGREEING * checked:
        raise GateMissedError(
            f"the reloaded classifier agrees with the measured decision on {alone} of {checked} texts, "
            f"and must on {FEWEST_AGREEING:.0%}; the export's weights are not those that were measured: "
            "export the removal's edit again, and name that export. If they are, texts end with the token "
            "that the tokenizer pads with, which stock classifiers take for padding: give it one of its own"
        )
    if agreeing < FEWEST_AGREEING * checked:
        raise GateMissedError(
            f"the reloaded classifier agrees with the measured decision on {alone} of {checked} texts one by "
            f"one, but on {agreeing} in padded batches as well, and must on {FEWEST_AGREEING:.0%}; nobody "
            "could use it in batches. Give the model's tokenizer a pad token that is in no text, and "
            "`padding_side` right where positions are absolute; load the model again and export"
        )


def _require_same_tokens(
    hosted: HostedModel, measured: Sequence[tuple[int, ...]], read: Sequence[tuple[int, ...]]
) -> None:
    """Refuse a folder whose tokenizer makes other tokens of a text than those that were measured.

    Raises:
        GateMissedError: Naming the first such text, and what to do.
    """
    other = [number for number, ids in enumerate(read) if ids != measured[number]]
    if other:
        number = other[0]
        own, stock = (repr(hosted.decode(ids[number])[:60]) for ids in (measured, read))
        raise GateMissedError(
            f"the folder's tokenizer reads {len(other)} of {len(read)} texts otherwise than they were "
            f"measured; texts[{number}] as {stock}, and measured was {own}: the classifier would decide on "
            "what nobody measured. Remove again by this version (a stock probe, or the classifier's folder), "
            "which reads texts as the tokenizer does, and export that"
        )


def _expected(
    hosted: HostedModel, command: ExportClassifier, texts: Sequence[tuple[int, ...]], score: Tensor
) -> Generator[Progress | None, None, Tensor]:
    work = pool_texts(hosted, STOCK, texts, command.removed)
    while True:
        try:
            done = next(work)
        except StopIteration as stop:
            pooled: Tensor = stop.value
            return pooled @ score.T
        yield Progress(stage="expected decisions", done=done, total=len(texts))


HANDLERS: dict[type, Handler] = {ExportClassifier: export_classifier}
