"""One digest of all texts that a removal was made of: where it is the same, the texts are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from trephine.domain.spurious_texts import AttributeText, LabelledText, Splits


def texts_digest(splits: Splits, examples: Sequence[AttributeText]) -> str:
    """Return the sha256 of all texts as given, in their order, and of what is told of them.

    It is that of a JSON object, ASCII without spaces: per split, in the order of `splits`, a list of
    `[text, label, attribute, twin, environment, pair]`, null where nothing is told, then of `attribute_texts`
    one of `[text, attribute]`. Pairs are numbered as they appear: their names may be of files.
    """
    pairs: dict[str, int] = {}
    told: dict[str, list[list[str | int | None]]] = {
        name: [[*_told(one), _number(pairs, one.pair)] for one in texts] for name, texts in splits.items()
    }
    told["attribute_texts"] = [[one.text, one.attribute] for one in examples]
    return hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()


def _told(one: LabelledText) -> tuple[str | None, ...]:
    return one.text, one.label, one.attribute, one.twin, one.environment


def _number(pairs: dict[str, int], name: str | None) -> int | None:
    return None if name is None else pairs.setdefault(name, len(pairs))
