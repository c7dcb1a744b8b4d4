"""Options of a removal of spurious features that say nothing without another one, and are refused then."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.dataset_circuits import Estimator
from trephine.domain.errors import InvalidRequestError, LayerOutOfRangeError
from trephine.domain.spurious_heads import DecisionHead, ProbeHead

DEFAULT_STEPS = 5
"""Of integrated gradients."""


def check_estimator(estimator: Estimator, steps: int | None) -> None:
    """Refuse steps that are not 1 to 100, steps of an estimator that takes none, and exact patching.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if estimator is Estimator.EXACT:
        raise InvalidRequestError(
            "estimator ranks all features, and exact patching is for finalists; set budget.exact",
            field="estimator",
        )
    if steps is not None and not 1 <= steps <= 100:
        raise InvalidRequestError("steps must be 1 to 100", field="steps")
    if steps is not None and estimator is not Estimator.INTEGRATED_GRADIENTS:
        raise InvalidRequestError(
            f"steps are of integrated_gradients, not of {estimator.value}; leave them out, or ask for that",
            field="steps",
        )


def check_layers(layers: Sequence[int] | None, decision: DecisionHead) -> None:
    """Refuse layers above the one that a probe reads, whose features it cannot rest on.

    Args:
        layers: Whose features may go; None: whatever the head can read.
        decision: What decides.

    Raises:
        LayerOutOfRangeError: Naming the layer.
    """
    site = decision.layer if isinstance(decision, ProbeHead) else None
    for number, layer in enumerate(layers or ()):
        if site is not None and layer > site:
            raise LayerOutOfRangeError(
                f"layer {layer} lies above the head, which reads after layer {site}: no feature there can be "
                f"among what it decides by. Leave out what is above {site}, or let it read later",
                field=f"layers[{number}]",
                layer=layer,
            )


def check_neutral(*, told: bool, trained: bool) -> None:
    """Refuse neutral examples that are not there, or that no head is trained with.

    Args:
        told: Whether there are examples of the attribute.
        trained: Whether a head without the attribute is tried.

    Raises:
        InvalidRequestError: Saying what to leave out.
    """
    if not told:
        raise InvalidRequestError(
            "neutral_examples says something of attribute_texts, and there are none", field="neutral_examples"
        )
    if not trained:
        raise InvalidRequestError(
            "neutral_examples is told to the head without the attribute alone, and none is tried with no "
            "erasing or no refit; leave one of the two out",
            field="neutral_examples",
        )
