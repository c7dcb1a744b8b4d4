"""Texts in contexts, as a set wants them: with BOS in front or without, and how that was decided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.sites import NEURONS
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import is_degraded, require_set

PROBE = "probe-1"
"""Name of the built-in probe text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What stands in front of every context."""

    token_id: int | None
    text: str
    """The token spelled out; empty for none."""
    why: str


def probe_text() -> str:
    """Read the probe text that is shipped."""
    return resources.files("trephine.engine").joinpath("texts/probe.txt").read_text(encoding="utf-8")


def text_label(name: str, text: str) -> str:
    """Name a text with the hash of its UTF-8 bytes, as reports do."""
    return f"{name} (sha256 {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()})"


def beginning(hosted: HostedModel, prepends_bos: bool | None) -> Beginning:
    """Decide what stands in front of contexts.

    The set's own word decides. Where it says nothing, the tokenizer's habit does: what it puts in front of
    a text when asked for special tokens. A tokenizer without BOS gives EOS for it, as TransformerLens does.
    """
    if prepends_bos is None:
        habit = list(hosted.tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
        plain = list(hosted.tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
        if len(habit) > len(plain) and habit[-len(plain) :] == plain:
            return _begins_with(hosted, habit[0], "the set does not say; the tokenizer puts it there")
        return Beginning(token_id=None, text="", why="the set does not say; the tokenizer puts none there")
    if not prepends_bos:
        return Beginning(token_id=None, text="", why="the set was trained without")
    token_id = _bos(hosted)
    if token_id is None:
        return Beginning(token_id=None, text="", why="the set was trained with BOS; this model has none")
    return _begins_with(hosted, token_id, "the set was trained with it")


def _bos(hosted: HostedModel) -> int | None:
    known = (hosted.tokenizer.bos_token_id, hosted.info.bos_token_id, hosted.tokenizer.eos_token_id)
    return next((token for token in known if token is not None), None)


def _begins_with(hosted: HostedModel, token_id: int, why: str) -> Beginning:
    return Beginning(token_id=token_id, text=hosted.token(token_id).display, why=why)


def beginning_caveats(hosted: HostedModel, names: Iterable[str], ids: Sequence[int]) -> tuple[str, ...]:
    """Say which sets were trained with a first token that a text lacks: what they do there is less sure.

    Args:
        hosted: The model.
        names: Sets that answer for the text, neurons included.
        ids: The text, not empty.

    Raises:
        ReplacementNotFoundError: If one of them is not loaded.
    """
    first = hosted.token(ids[0]).display
    wanted = {
        name: require_set(hosted, name).admitted.admission.begins_with
        for name in dict.fromkeys(names)
        if name != NEURONS
    }
    return tuple(
        f"The set {name} was trained on texts that begin with {begins}; this text does not."
        for name, begins in wanted.items()
        if begins and begins != first
    )


def degraded_caveats(hosted: HostedModel, names: Iterable[str]) -> tuple[str, ...]:
    """Say which sets failed admission and were accepted all the same, and why: every result carries it.

    Args:
        hosted: The model.
        names: Sets that a result rests on, neurons included, which never fail.

    Raises:
        ReplacementNotFoundError: If one of them is not loaded.
    """
    return tuple(
        f"The set {name} failed admission and was accepted all the same: "
        f"{require_set(hosted, name).admitted.admission.why}"
        for name in dict.fromkeys(names)
        if is_degraded(hosted, name)
    )


def sets_of(interventions: Iterable[Intervention]) -> list[str]:
    """List the sets whose features are written or decide whether something is, neurons included."""
    targets = [one.target for one in interventions]
    named = [target.feature for target in targets if isinstance(target, FeatureTarget)]
    named += [one.condition.feature for one in interventions if one.condition is not None]
    return [feature.replacement for feature in named]


def contexts_of(hosted: HostedModel, text: str, *, size: int, begin: Beginning) -> list[tuple[int, ...]]:
    """Split a text into consecutive contexts of `size` tokens, the beginning included.

    A rest of fewer than 8 tokens is dropped: it says nothing and would weigh as much as a whole context.
    """
    ids = list(hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    front = () if begin.token_id is None else (begin.token_id,)
    step = min(size, hosted.info.context_length) - len(front)
    pieces = [(*front, *ids[start : start + step]) for start in range(0, len(ids), step)]
    return [piece for piece in pieces if len(piece) >= 8]


def n_tokens(contexts: Sequence[Sequence[int]]) -> int:
    """Count tokens over all contexts."""
    return sum(map(len, contexts))
