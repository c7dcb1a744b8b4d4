"""Which token ids a text becomes: with what the tokenizer adds by itself where a stock classifier decides."""

from __future__ import annotations

from collections.abc import Iterable

from trephine.domain.errors import SplitLeakageError
from trephine.domain.spurious_heads import TEXT, DecisionHead, Pooling, ProbeHead, TokenHead
from trephine.engine.hosted import HostedModel
from trephine.engine.spurious.heads import worded
from trephine.engine.spurious.pooling import Ids


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
    """Say with which special tokens texts were read, or without which; nothing where there are none."""
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
