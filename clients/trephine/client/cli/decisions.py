"""What decides, from the options of `remove-spurious`; those that the decision does not read are refused."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.errors import InvalidRequestError
from trephine.client.spurious_requests import Decision
from trephine.client.types import LabelTokens, Probe, RewardModel, StockClassifier

_POOLINGS = ("last", "mean")


def decision_of(
    *,
    layer: int | None = None,
    pooling: str | None = None,
    tokens: Sequence[str] = (),
    template: str | None = None,
    classifier: str | None = None,
    reward: str | None = None,
    positive_label: str | None = None,
    pairs: bool | None = None,
    paired: bool = False,
) -> Decision:
    """Return the one decision that the options describe; with none of them, a probe in the stock form.

    A probe is trained on pairs if `pairs` says so; if it says nothing, where the texts are `paired`.

    Raises:
        InvalidRequestError: If they describe several, or one says something of another kind of decision.
    """
    if sum(map(bool, (tokens, classifier, reward, layer is not None))) > 1:
        raise InvalidRequestError(
            "one of --layer, --token, --classifier and --reward decides; leave the others out",
            field="decision",
        )
    _refuse_unread(pooling, bool(tokens or classifier or reward), "--pooling", "a probe", "pooling")
    _refuse_unread(pairs or None, bool(tokens or classifier or reward), "--pairs", "a probe", "pairs")
    _refuse_unread(template, not tokens, "--template", "label tokens (--token)", "template")
    _refuse_unread(positive_label, not reward, "--positive-label", "a reward (--reward)", "positive_label")
    if classifier:
        return StockClassifier(source=classifier)
    if reward:
        return _reward(reward, positive_label)
    return (
        _tokens(tokens, template)
        if tokens
        else _probe(layer, pooling or "last", paired if pairs is None else pairs)
    )


def _refuse_unread(value: str | bool | None, unread: bool, option: str, owner: str, field: str) -> None:
    if value is not None and unread:
        raise InvalidRequestError(
            f"{option} is of {owner}, and something else decides here; leave it out", field=field
        )


def _probe(layer: int | None, pooling: str, pairs: bool) -> Probe:
    if pooling not in _POOLINGS:
        raise InvalidRequestError(f"--pooling must be last or mean, got {pooling!r}", field="pooling")
    return Probe(layer=layer, pooling=pooling, pairs=pairs)


def _reward(source: str, positive_label: str | None) -> RewardModel:
    if not positive_label:
        raise InvalidRequestError(
            "--reward needs --positive-label, the label that a high reward stands for", field="positive_label"
        )
    return RewardModel(source=source, positive_label=positive_label)


def _tokens(tokens: Sequence[str], template: str | None) -> LabelTokens:
    pairs = [one.partition("=") for one in tokens]
    if any(not label or not token for label, _, token in pairs):
        raise InvalidRequestError("--token is written as LABEL=TOKEN, mind the leading space", field="token")
    named = {label: token for label, _, token in pairs}
    if len(named) < len(pairs):
        raise InvalidRequestError("--token names a label twice; each has one token", field="token")
    return LabelTokens(tokens=named) if template is None else LabelTokens(tokens=named, template=template)
