"""What an imported graph explains: by its own word where Trephine wrote it, else by its logits' labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from trephine.domain.circuits import Node, NodeKind
from trephine.domain.errors import InvalidRequestError
from trephine.domain.targets import ExplainedTarget, GraphTarget, TargetKind
from trephine.domain.tokens import Token

_OUTPUT = re.compile(r'Output "(?P<token>.*)" \(p=[0-9.]+\)', re.DOTALL)
"""How circuit-tracer labels a target."""
_ASKED: TypeAdapter[GraphTarget] = TypeAdapter(GraphTarget)


class _Token(BaseModel):
    id: int
    display: str


class _Target(BaseModel):
    """A target as `pages.circuit_targets` writes it."""

    kind: TargetKind
    label: str
    share: float = Field(ge=0, allow_inf_nan=False)
    value: float | None = None
    estimated: bool = False
    token: _Token | None = None
    against: _Token | None = None
    replacement: str = ""


_TARGETS = TypeAdapter(list[_Target])


def imported_targets(
    nodes: Sequence[Node], told: Mapping[str, Any]
) -> tuple[tuple[ExplainedTarget, ...], GraphTarget | None]:
    """Return what the target nodes stand for, in their order, and the question, where it is known.

    Args:
        nodes: Of the graph.
        told: What a file of ours says in `metadata.info`; nothing of another's, whose targets are logits,
            weighted by their probability.

    Raises:
        InvalidRequestError: If what it says is no such thing, or of another number of targets.
    """
    logits = [node for node in nodes if node.kind is NodeKind.LOGIT]
    if "targets" not in told:
        return _by_label(logits), None
    try:
        found = _TARGETS.validate_python(told["targets"])
        asked = None if told.get("asked") is None else _ASKED.validate_python(told["asked"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequestError(
            f"the file's metadata.info does not say what the graph explains: {first['msg']}", field="artifact"
        ) from error
    if len(found) != len(logits):
        raise InvalidRequestError(
            f"the file's metadata.info tells of {len(found)} targets, and its graph has {len(logits)}",
            field="artifact",
        )
    return tuple(_explained(told, node) for told, node in zip(found, logits, strict=True)), asked


def _explained(told: _Target, node: Node) -> ExplainedTarget:
    return ExplainedTarget(
        kind=told.kind,
        label=told.label,
        position=node.position,
        share=told.share,
        value=nan if told.value is None else told.value,
        estimated=told.estimated,
        token=_token(told.token),
        against=_token(told.against),
        replacement=told.replacement,
    )


def _token(told: _Token | None) -> Token | None:
    return None if told is None else _shown(told.id, told.display)


def _by_label(logits: Sequence[Node]) -> tuple[ExplainedTarget, ...]:
    """Take what the file calls logits for targets."""
    mass = sum(abs(node.activation) for node in logits)
    return tuple(
        ExplainedTarget(
            kind=TargetKind.LOGIT,
            label=token.display,
            position=node.position,
            share=abs(node.activation) / mass if mass > 0 else 1 / len(logits),
            value=nan,
            token=token,
        )
        for node, token in ((node, _output(node)) for node in logits)
    )


def _output(node: Node) -> Token:
    told = _OUTPUT.fullmatch(node.label)
    return _shown(node.feature, told["token"] if told else node.label)


def _shown(token_id: int, display: str) -> Token:
    return Token(id=token_id, raw=display.encode("utf-8", "replace"), display=display)
