"""Requests to remove spurious features, and the files that they are read from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.datasets import rows_of
from trephine.client.edit_history import current_user
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.requests import fresh_id, resource
from trephine.client.saved_datasets import is_saved, saved_rows
from trephine.client.sendable import sendable
from trephine.client.set_ids import set_id
from trephine.client.types import (
    AttributeText,
    FeatureOverride,
    FeatureRef,
    LabelledText,
    LabelTokens,
    Probe,
    RewardModel,
    StockClassifier,
)
from trephine.v1 import common_pb2, dataset_circuits_pb2
from trephine.v1 import spurious_removal_pb2 as pb

Decision = Probe | LabelTokens | StockClassifier | RewardModel
_RULES = ("spurious_above", "task_below", "false_discoveries", "clusters")
_BUDGET = ("candidates", "exact", "counts", "effect_texts", "fit_texts", "random_sets")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """Which column holds what; None: there is none."""

    text: str = "text"
    label: str = "label"
    attribute: str | None = None
    twin: str | None = None
    environment: str | None = None


@sendable
def remove_spurious(
    model: str,
    training: Sequence[LabelledText],
    *,
    validation: Sequence[LabelledText] = (),
    test: Sequence[LabelledText] = (),
    attribute_texts: Sequence[AttributeText] = (),
    swaps: Sequence[tuple[str, str]] = (),
    decision: Decision | None = None,
    edit_id: str | None = None,
    author: str | None = None,
    estimator: str | None = None,
    refit: bool = True,
    erase: bool = True,
    neutral_examples: bool = False,
    unproven: bool = False,
    overrides: Sequence[FeatureOverride] = (),
    request_id: str | None = None,
    **options: Any,
) -> pb.RemoveSpuriousFeaturesRequest:
    """Remove spurious features. `options` are fields of rules, budget and request; None leaves one unset."""
    given = {name: value for name, value in options.items() if value is not None}
    if "replacement" in given:
        given["replacement"] = set_id(given["replacement"], model)
    rules = {name: given.pop(name) for name in _RULES if name in given}
    budget = {name: given.pop(name) for name in _BUDGET if name in given}
    number = dataset_circuits_pb2.EffectEstimator.Value(
        f"EFFECT_ESTIMATOR_{(estimator or 'unspecified').upper()}"
    )
    return pb.RemoveSpuriousFeaturesRequest(
        model=resource("models", model),
        edit_id=edit_id,
        author=author or (current_user() if edit_id else ""),
        training=[_text(one) for one in training],
        validation=[_text(one) for one in validation],
        test=[_text(one) for one in test],
        attribute_texts=[pb.AttributeText(text=one.text, attribute=one.attribute) for one in attribute_texts],
        swaps=[pb.WordSwap(first=first, second=second) for first, second in swaps],
        decision=_decision(decision),
        estimator=number,
        judging=pb.JudgingRules(**rules),
        budget=pb.RemovalBudget(**budget),
        without_refit=not refit,
        without_erasure=not erase,
        neutral_examples=neutral_examples,
        unproven=unproven,
        overrides=[_override(one) for one in overrides],
        request_id=fresh_id(request_id),
        **given,
    )


@sendable
def export_classifier(
    removal: str, classifier_id: str, texts: Sequence[str], *, export: str | None, request_id: str | None
) -> pb.ExportClassifierRequest:
    """Publish a report's head on an export of its edit."""
    return pb.ExportClassifierRequest(
        removal=resource("spuriousRemovals", removal),
        export=resource("exports", export) if export else None,
        classifier_id=classifier_id,
        texts=texts,
        request_id=fresh_id(request_id),
    )


def _text(one: LabelledText) -> pb.LabelledText:
    return pb.LabelledText(
        text=one.text, label=one.label, attribute=one.attribute, twin=one.twin, environment=one.environment
    )


def _override(one: FeatureOverride) -> pb.FeatureOverride:
    feature = common_pb2.FeatureRef(
        replacement=one.feature.replacement, layer=one.feature.layer, index=one.feature.index
    )
    return pb.FeatureOverride(feature=feature, remove=one.remove, reason=one.reason)


def _decision(decision: Decision | None) -> pb.DecisionHead | None:
    match decision:
        case None:
            return None
        case Probe():
            pooling = pb.TextPooling.Value(f"TEXT_POOLING_{str(decision.pooling).upper()}")
            probe = pb.ProbeHead(layer=decision.layer, pooling=pooling, penalty=decision.penalty)
            return pb.DecisionHead(probe=probe)
        case LabelTokens():
            tokens = [pb.LabelToken(label=label, token=token) for label, token in decision.tokens.items()]
            return pb.DecisionHead(tokens=pb.TokenHead(tokens=tokens, template=decision.template))
        case StockClassifier():
            return pb.DecisionHead(classifier=pb.ClassifierHead(source=decision.source))
        case RewardModel():
            reward = pb.RewardHead(source=decision.source, threshold=decision.threshold)
            return pb.DecisionHead(reward=reward)


def read_texts(path: str | Path, columns: TextColumns | None = None) -> tuple[LabelledText, ...]:
    """Read labelled texts from a `.jsonl` or `.csv` file, or from a folder.

    A folder holds such files, read in order of name, or is one that `datasets` saved: there a column of class
    numbers reads as its classes' names. A saved folder of several splits is not read whole: name a split's.

    Raises:
        LocalFileError: If a file cannot be read as such, or a folder holds none.
        InvalidRequestError: If a column is missing; the message names row and column.
    """
    named = columns or TextColumns()
    return tuple(
        LabelledText(
            text=_cell(row, named.text, place),
            label=_cell(row, named.label, place),
            attribute=None if named.attribute is None else _cell(row, named.attribute, place),
            twin=None if named.twin is None else _cell(row, named.twin, place),
            environment=None if named.environment is None else _cell(row, named.environment, place),
        )
        for place, row in _rows(Path(path).expanduser())
    )


def read_attribute_texts(path: str | Path, *, text: str, attribute: str) -> tuple[AttributeText, ...]:
    """Read examples of an attribute, with the same errors."""
    return tuple(
        AttributeText(text=_cell(row, text, place), attribute=_cell(row, attribute, place))
        for place, row in _rows(Path(path).expanduser())
    )


def read_overrides(path: str | Path) -> tuple[FeatureOverride, ...]:
    """Read a person's words: `{"12:345": {"remove": false, "reason": "..."}}`, sets as `SET:12:345`.

    Raises:
        LocalFileError: If it is no such file.
        InvalidRequestError: If an entry is not as above; the message names it.
    """
    file = Path(path).expanduser()
    try:
        said = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as failure:
        raise LocalFileError(f"cannot read {file} as JSON: {failure}") from failure
    if not isinstance(said, dict):
        raise InvalidRequestError(f"{file.name} must hold one object, feature by feature", field="overrides")
    return tuple(_said(name, word, file.name) for name, word in said.items())


def _said(name: str, word: Any, file: str) -> FeatureOverride:
    parts = name.rsplit(":", 2)
    *owner, layer, index = parts if len(parts) > 1 else (name, "", "")
    numbers = layer.isdecimal() and index.isdecimal()
    if not numbers or not isinstance(word, dict) or not isinstance(word.get("remove"), bool):
        raise InvalidRequestError(
            f'{file}: {name!r} must be LAYER:INDEX or SET:LAYER:INDEX, with {{"remove": true or false, '
            '"reason": "..."}}',
            field="overrides",
        )
    feature = FeatureRef(layer=int(layer), index=int(index), replacement=owner[0] if owner else "")
    return FeatureOverride(feature=feature, remove=word["remove"], reason=str(word.get("reason", "")))


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    if not path.is_dir():
        return [(f"{path.name}, row {n}", row) for n, row in enumerate(rows_of(path), 1)]
    if is_saved(path):
        return [(f"{path.name}, row {n}", row) for n, row in enumerate(saved_rows(path), 1)]
    files = sorted(file for file in path.iterdir() if file.suffix in {".jsonl", ".ndjson", ".csv"})
    if not files:
        raise LocalFileError(
            f"{path} holds no .jsonl or .csv file, and is no folder that `datasets` saved; save the data set "
            "as JSON lines into it"
        )
    return [(f"{file.name}, row {n}", row) for file in files for n, row in enumerate(rows_of(file), 1)]


def _cell(row: Mapping[str, Any], name: str, place: str) -> str:
    if name not in row:
        raise InvalidRequestError(
            f"{place} has no column {name!r}; it has {', '.join(map(str, row)) or 'none'}. Say which column "
            "holds what",
            field=name,
        )
    value = row[name]
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{place}: column {name!r} is not a text, or empty", field=name)
    return value
