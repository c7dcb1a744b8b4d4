"""Domain values to and from trees (JSON and `bytes`), for frames and for what is stored.

`Array.data` stays `bytes` in a tree, so frames carry it beside the JSON; it is never base64.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trephine.domain.ablation import MeasureAblation
from trephine.domain.activations import RankActivity, ReadActivations
from trephine.domain.attention import TraceAttention
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import CheckDiscovery, DiscoverCircuit
from trephine.domain.classifier_exports import ExportClassifier
from trephine.domain.commands import Command
from trephine.domain.dataset_circuits import CheckDatasetCircuit, DiscoverDatasetCircuit
from trephine.domain.directions import CompareFeatures
from trephine.domain.edit_evaluation import EvaluateEdit
from trephine.domain.edits import ProposeEdit
from trephine.domain.errors import (
    CorruptRecordError,
    InternalError,
    InvalidRequestError,
    TrephineError,
    error_from,
)
from trephine.domain.exports import CompileExport, PlanExport
from trephine.domain.features import ContrastFeatures, IndexFeatures, RankByToken, ViewDecoder
from trephine.domain.fitting import FitReplacementSet, PredictFit
from trephine.domain.generation import Generate, Score
from trephine.domain.global_circuits import CheckGlobalCircuit, DiscoverGlobalCircuit
from trephine.domain.models import AskStatus, DescribeCapabilities, LoadModel
from trephine.domain.replacements import (
    EvaluateReplacementSet,
    ListReplacementSets,
    LoadReplacementSet,
    UnloadReplacementSet,
)
from trephine.domain.spurious_checks import CheckSpuriousRemoval
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.tokens import RenderChat, ResolveTarget, Tokenize
from trephine.domain.verification import VerifyCircuit
from trephine.ipc.frames import Tree

ValueT = TypeVar("ValueT")
CommandType = type[Command[Any, Any]]

ENGINE_COMMANDS: tuple[CommandType, ...] = (
    LoadModel,
    DescribeCapabilities,
    AskStatus,
    Tokenize,
    RenderChat,
    ResolveTarget,
    Generate,
    Score,
    ReadActivations,
    RankActivity,
    MeasureAblation,
    CheckDiscovery,
    DiscoverCircuit,
    ExplainEdges,
    TraceAttention,
    VerifyCircuit,
    CheckDatasetCircuit,
    DiscoverDatasetCircuit,
    CheckGlobalCircuit,
    DiscoverGlobalCircuit,
    CheckSpuriousRemoval,
    RemoveSpuriousFeatures,
    CompareFeatures,
    ProposeEdit,
    EvaluateEdit,
    PlanExport,
    CompileExport,
    ExportClassifier,
    FitReplacementSet,
    PredictFit,
    ViewDecoder,
    RankByToken,
    ContrastFeatures,
    IndexFeatures,
    LoadReplacementSet,
    UnloadReplacementSet,
    ListReplacementSets,
    EvaluateReplacementSet,
)


def by_name(commands: tuple[CommandType, ...]) -> Mapping[str, CommandType]:
    """Commands by the name that they have in a frame."""
    return MappingProxyType({command.__name__: command for command in commands})


COMMANDS = by_name(ENGINE_COMMANDS)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return _cached_adapter(kind)


@cache
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_tree(value: object) -> Tree:
    """Turn a domain dataclass into a tree. Whoever reads it validates it, so nothing is checked here."""
    return _adapter(type(value)).dump_python(value, warnings="none")


def from_tree(kind: type[ValueT], tree: Tree) -> ValueT:
    """Turn a tree back into a domain value; the value's own checks run.

    Raises:
        CorruptRecordError: If the tree is no such value.
        TrephineError: What the value's own checks raise, such as `NonFiniteValueError`.
    """
    try:
        value: ValueT = _adapter(kind).validate_python(tree)
    except ValidationError as error:
        raise CorruptRecordError(
            f"this is no {kind.__name__}: {_first(error)}", field=_field(error)
        ) from error
    return value


def command_from_tree(
    name: str, tree: Tree, allowed: Mapping[str, CommandType] = COMMANDS
) -> Command[Any, Any]:
    """Rebuild a command by name.

    Raises:
        InvalidRequestError: If the name is not among the allowed ones, or a field is wrong.
        TrephineError: What the command's own checks raise.
    """
    if name not in allowed:
        raise InvalidRequestError(
            f"there is no command {name[:80]!r} here; known are {', '.join(allowed)}", field="command"
        )
    try:
        command: Command[Any, Any] = _adapter(allowed[name]).validate_python(tree)
    except ValidationError as error:
        raise InvalidRequestError(f"{name}: {_first(error)}", field=_field(error)) from error
    return command


def error_to_tree(error: TrephineError) -> Tree:
    """Turn an error into a tree; the types of its context survive."""
    return {"reason": error.reason, "message": error.message, "context": dict(error.context)}


def error_from_tree(tree: Tree) -> TrephineError:
    """Rebuild an error; what is no error becomes an `InternalError`."""
    if not isinstance(tree, dict) or not isinstance(tree.get("message"), str):
        return InternalError("an error arrived that cannot be read")
    context = tree.get("context")
    known = {
        key: value
        for key, value in (context if isinstance(context, dict) else {}).items()
        if isinstance(value, str | int | float | bool)
    }
    return error_from(str(tree.get("reason")), tree["message"], known)


def _first(error: ValidationError) -> str:
    return f"{_field(error) or 'value'}: {error.errors(include_input=False, include_url=False)[0]['msg']}"


def _field(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors(include_input=False, include_url=False)[0]["loc"])
