"""Which token ids a text becomes: with what the tokenizer adds by itself where a stock classifier decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trephine.domain.errors import HeadNotStockError, SplitLeakageError
from trephine.domain.spurious_heads import (
    TEXT,
    ClassifierHead,
    DecisionHead,
    Pooling,
    ProbeHead,
    RewardHead,
    TokenHead,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.spurious.heads import stock_configuration, worded
from trephine.engine.spurious.pooling import Ids

_ASKED = 64
"""Texts that a given head's own tokenizer is asked to read."""


def with_special_tokens(hosted: HostedModel, decision: DecisionHead) -> bool:
    """Return whether texts are read with the special tokens that the tokenizer adds by itself.

    They are wherever the head is, or can be exported as, a stock classifier: that is given them, too. Label
    tokens are not read behind a token that ends the text: nothing comes next there.
    """
    if isinstance(decision, ProbeHead):
        return decision.layer is None and decision.pooling is Pooling.LAST
    if isinstance(decision, TokenHead):
        return decision.template == TEXT and not hosted.added_tokens("a")[1]
    return True


def read_text(hosted: HostedModel, decision: DecisionHead, text: str) -> Ids:
    """Return the token ids of a text, in the template of label tokens if there is one.

    Raises:
        EmptyPromptError: If the text has no token of its own.
        PromptTooLongError: If it exceeds the context.
    """
    special_tokens = with_special_tokens(hosted, decision)
    return tuple(hosted.encode(worded(decision, text), special_tokens=special_tokens))


def reader_of(hosted: HostedModel, decision: DecisionHead) -> Callable[[str], Ids]:
    """Return what reads texts for a decision: to the last token that its head is read at.

    Raises:
        HeadNotStockError: If a given head's configuration cannot be read.
    """
    pad = padding_of(decision)
    return lambda text: without_padding(read_text(hosted, decision, text), pad)


def padding_of(decision: DecisionHead) -> int | None:
    """Return the token that a given head's folder pads with; None: the head is not given, or pads with none.

    Stock transformers reads such a head at the last token that is another one, wherever the text ends.

    Raises:
        HeadNotStockError: If its configuration cannot be read.
    """
    if not isinstance(decision, ClassifierHead | RewardHead):
        return None
    config = stock_configuration(decision)
    pad = config.get_text_config().pad_token_id
    return None if pad is None else int(pad)


def without_padding(ids: Ids, pad: int | None) -> Ids:
    """Return the tokens up to the last one that is no padding; what follows it changes nothing before."""
    return ids if pad is None else tuple(dropwhile(lambda one: one == pad, reversed(ids)))[::-1]


def require_same_reading(hosted: HostedModel, decision: DecisionHead, texts: Sequence[str]) -> None:
    """Refuse a given head whose folder has a tokenizer that reads texts otherwise than the hosted model's.

    What it decides on is not what would be measured: with a first token more it may decide the other way.

    Raises:
        HeadNotStockError: Showing a text both ways, or if the folder's tokenizer cannot be loaded.
    """
    if not isinstance(decision, ClassifierHead | RewardHead):
        return
    folder = Path(decision.folder)
    if not (folder / "tokenizer.json").is_file():
        return  # it has none of its own
    own, asked = _tokenizer(decision), texts[:_ASKED]
    read = [(tuple(own(one, verbose=False)["input_ids"]), read_text(hosted, decision, one)) for one in asked]
    other = [pair for pair in read if pair[0] != pair[1]]
    if other:
        its, ours = (f"{hosted.decode(ids)[:60]!r} ({len(ids)} tokens)" for ids in other[0])
        raise HeadNotStockError(
            f"the tokenizer of {folder.name} reads {len(other)} of {len(asked)} texts otherwise than the "
            f"hosted model's, one of them as {its} and not as {ours}: what it decides on would not be "
            "what is measured. Load the model with that folder's tokenizer",
            field=decision.field,
        )


def _tokenizer(head: ClassifierHead | RewardHead) -> Any:
    folder = Path(head.folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as failure:  # of a file that it cannot parse the library raises a bare one
        raise HeadNotStockError(
            f"the tokenizer of {folder.name} cannot be loaded: {failure}. Save it again beside the head, or "
            "take its files away: texts are then read by the hosted model's",
            field=head.field,
        ) from failure


def refuse_shared(places: dict[Ids, str], ids: Ids, field: str) -> None:
    """Refuse tokens that stand in another split, and note where they stand first.

    Args:
        places: First fields of all that was read, `training[3].twin` for example; it grows.
        ids: What a text became.
        field: Where it stands.

    Raises:
        SplitLeakageError: Naming both places.
    """
    known = places.setdefault(ids, field)
    if known.partition("[")[0] != field.partition("[")[0]:
        raise SplitLeakageError(
            f"{field} and {known} become the same tokens, so that they are one text to the model, whatever "
            "else they differ in. Figures on texts that were trained on say nothing: leave one of them out",
            field=field,
        )


def reading_caveats(hosted: HostedModel, decision: DecisionHead, texts: Iterable[str]) -> tuple[str, ...]:
    """Say with which special tokens texts were read, or without which, and where they end."""
    texts = tuple(texts)
    return (*_special_tokens(hosted, decision, texts), *_padding(hosted, decision, texts))


def _padding(hosted: HostedModel, decision: DecisionHead, texts: Iterable[str]) -> tuple[str, ...]:
    pad = padding_of(decision)
    if pad is None or not any(read_text(hosted, decision, text)[-1] == pad for text in texts):
        return ()
    (token,) = hosted.tokens([pad])
    return (
        f"texts end with {token.display}, which the given head's folder pads with: they are decided at the "
        "token before it, as stock transformers does",
    )


def _special_tokens(hosted: HostedModel, decision: DecisionHead, texts: Iterable[str]) -> tuple[str, ...]:
    added = dict.fromkeys(hosted.added_tokens(worded(decision, text)) for text in texts)
    found = [token for front, behind in added for token in (*front, *behind)]
    if not found:
        return ()
    names = ", ".join(dict.fromkeys(token.display for token in hosted.tokens(found)))
    if with_special_tokens(hosted, decision):
        return (
            f"texts were read as the tokenizer makes them, with {names}, as a stock classifier reads them",
        )
    return (
        f"texts were read without {names}, which the tokenizer adds by itself: with it this decision may be "
        "another one, and it is not measured. A probe with no layer and `last` pooling is read with it",
    )
