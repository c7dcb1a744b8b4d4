"""Requests to remove spurious features, and the file with a person's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.authors import current_user
from trephine.client.endpoint import REQUEST_BYTES
from trephine.client.errors import InvalidRequestError, LocalFileError, MessageTooLargeError
from trephine.client.plain_json import parse_json
from trephine.client.requests import fresh_id, resource
from trephine.client.sendable import listed, sendable
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
    refit: bool | None = None,
    erase: bool = True,
    neutral_examples: bool = False,
    unproven: bool = False,
    overrides: Sequence[FeatureOverride] = (),
    request_id: str | None = None,
    **options: Any,
) -> pb.RemoveSpuriousFeaturesRequest:
    """Remove spurious features. `options` are fields of rules, budget and request; None leaves one unset.

    `refit` unset trains the head again if it is one that is trained: label tokens and rewards are not.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "replacement" in given:
        given["replacement"] = set_id(given["replacement"], model)
    rules = {name: given.pop(name) for name in _RULES if name in given}
    budget = {name: given.pop(name) for name in _BUDGET if name in given}
    check_counts(budget.get("counts", ()))
    trained = not isinstance(decision, LabelTokens | RewardModel)
    number = dataset_circuits_pb2.EffectEstimator.Value(
        f"EFFECT_ESTIMATOR_{(estimator or 'unspecified').upper()}"
    )
    request = pb.RemoveSpuriousFeaturesRequest(
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
        without_refit=not (trained if refit is None else refit),
        without_erasure=not erase,
        neutral_examples=neutral_examples,
        unproven=unproven,
        overrides=[_override(one) for one in overrides],
        request_id=fresh_id(request_id),
        **given,
    )
    _require_room(request)
    return request


def _require_room(request: pb.RemoveSpuriousFeaturesRequest) -> None:
    """Refuse texts that no request holds; the transport would say it in bytes alone.

    Raises:
        MessageTooLargeError: Saying how many texts take how much.
    """
    size = request.ByteSize()
    if size > REQUEST_BYTES:
        texts = len(request.training) + len(request.validation) + len(request.test)
        raise MessageTooLargeError(
            f"{texts} texts and {len(request.attribute_texts)} examples take {size / 2**20:.1f} MiB, and a "
            f"request holds {REQUEST_BYTES / 2**20:.0f}: leave some out, or cut the longest ones",
            field="training",
        )


def check_counts(counts: Sequence[int]) -> None:
    """Refuse numbers of features that do not ascend, in the server's words.

    Raises:
        InvalidRequestError: If they repeat, fall, or begin below 1.
    """
    counts = listed(counts, "budget.counts")
    if list(counts) != sorted(set(counts)):
        raise InvalidRequestError("budget.counts must ascend, and hold one", field="budget.counts")
    if counts and counts[0] < 1:
        raise InvalidRequestError("budget.counts must start at 1 or above", field="budget.counts")


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
        text=one.text,
        label=one.label,
        attribute=one.attribute,
        twin=one.twin,
        environment=one.environment,
        pair=one.pair,
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
            probe = pb.ProbeHead(
                layer=decision.layer, pooling=pooling, penalty=decision.penalty, pairs=decision.pairs
            )
            return pb.DecisionHead(probe=probe)
        case LabelTokens():
            tokens = [pb.LabelToken(label=label, token=token) for label, token in decision.tokens.items()]
            return pb.DecisionHead(tokens=pb.TokenHead(tokens=tokens, template=decision.template))
        case StockClassifier():
            return pb.DecisionHead(classifier=pb.ClassifierHead(source=decision.source))
        case RewardModel():
            reward = pb.RewardHead(
                source=decision.source, threshold=decision.threshold, positive_label=decision.positive_label
            )
            return pb.DecisionHead(reward=reward)


def read_overrides(path: str | Path) -> tuple[FeatureOverride, ...]:
    """Read a person's words: `{"12:345": {"remove": false, "reason": "..."}}`, sets as `SET:12:345`.

    Raises:
        LocalFileError: If it is no such file.
        InvalidRequestError: If an entry is not as above, or names its feature, its word or its reason twice,
            however a feature is written; the message names it.
    """
    file = Path(path).expanduser()
    try:
        said = parse_json(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, UnicodeDecodeError, ValueError) as failure:
        raise LocalFileError(f"cannot read {file} as JSON: {failure}") from failure
    if not isinstance(said, _Pairs):
        raise InvalidRequestError(f"{file.name} must hold one object, feature by feature", field="overrides")
    named, found = dict[str, str](), list[FeatureOverride]()
    for name, word in said.entries:
        override = _said(name, word, file.name)
        address = str(override.feature)
        if address in named:
            also = "" if named[address] == name else f", as {named[address]!r} and as {name!r}"
            raise InvalidRequestError(
                f"{file.name} names the feature {address} twice{also}: leave one of the two out",
                field="overrides",
            )
        named[address] = name
        found.append(override)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A JSON object as it stands, a name that is written twice included."""

    entries: list[tuple[str, Any]]


def _said(name: str, word: Any, file: str) -> FeatureOverride:
    parts = name.rsplit(":", 2)
    *owner, layer, index = parts if len(parts) > 1 else (name, "", "")
    if not (layer.isdecimal() and index.isdecimal() and isinstance(word, _Pairs)):
        raise _unlike(file, name, "must be LAYER:INDEX or SET:LAYER:INDEX, with")
    keys = [key for key, _ in word.entries]
    if (again := next((key for key in keys if keys.count(key) > 1), None)) is not None:
        raise _unlike(file, name, f"says {again!r} twice; leave one of the two out:")
    told = dict(word.entries)
    remove, reason = told.get("remove"), told.get("reason")
    if not isinstance(remove, bool):
        raise _unlike(file, name, "must say in `remove` whether it goes, as true or false without quotes:")
    if not isinstance(reason, str) or not reason.strip():
        raise _unlike(file, name, "must say why in `reason`, as text:")
    feature = FeatureRef(layer=int(layer), index=int(index), replacement=owner[0] if owner else "")
    return FeatureOverride(feature=feature, remove=remove, reason=reason)


def _unlike(file: str, name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f'{file}: {name!r} {what} {{"remove": true or false, "reason": "..."}}', field="overrides"
    )
