"""Request messages, built from plain arguments. Shared by the sync and the async surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import uuid4

from trephine.client.errors import InvalidRequestError
from trephine.client.sendable import listed, sendable
from trephine.client.set_ids import set_id
from trephine.client.types import Edit, EditUse, Intervention
from trephine.client.types.gguf import GgufType
from trephine.client.types.interventions import encode
from trephine.v1 import (
    audit_service_pb2,
    circuit_service_pb2,
    circuit_targets_pb2,
    common_pb2,
    edit_service_pb2,
    export_signing_pb2,
    generation_service_pb2,
    gguf_pb2,
    intervention_service_pb2,
    live_edits_pb2,
    model_service_pb2,
)

AnyEdit = Edit | EditUse | str
"""An edit as value (that version), at a strength, or by name (`no-mary` is the latest version)."""

Role = Literal["system", "user", "assistant"]
"""Who speaks in a turn of a chat."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of a generation and what is done to it."""

    prompt: str
    interventions: Sequence[Intervention] = ()
    edits: Sequence[AnyEdit] = ()
    """Stored edits that it is served under; empty: those that its model serves by default."""
    plain: bool = False
    """Serve it without the model's default edits."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A prompt and the continuation whose probability is asked for."""

    prompt: str
    continuation: str
    interventions: Sequence[Intervention] = ()
    edits: Sequence[AnyEdit] = ()
    """Stored edits that it is served under; empty: those that its model serves by default."""
    plain: bool = False
    """Serve it without the model's default edits."""


RowT = TypeVar("RowT")


def fresh_id(given: str | None) -> str:
    """The caller's request id, or a new one."""
    return given or str(uuid4())


@sendable
def resource(collection: str, name: str) -> str:
    """`no-mary` or `edits/no-mary` as a resource name."""
    name.encode()  # a name goes into a request that is built elsewhere
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def edit_name(edit: Edit | str) -> str:
    """The resource name of an edit: by name the latest version, as a value the very version that it is."""
    return edit.reference if isinstance(edit, Edit) else resource("edits", edit)


@sendable
def uses(edits: Sequence[AnyEdit]) -> list[live_edits_pb2.EditUse]:
    """Edits with their strengths."""
    return [
        live_edits_pb2.EditUse(edit=resource("edits", one.edit), strength=one.strength)
        if isinstance(one, EditUse)
        else live_edits_pb2.EditUse(edit=edit_name(one))
        for one in listed(edits, "edits")
    ]


@sendable
def target(token: str, against: str | None) -> common_pb2.LogitTarget:
    """What is measured at the last position."""
    return common_pb2.LogitTarget(token=token, against=against)


@sendable
def load(source: str, name: str | None, request_id: str | None, **options: Any) -> Any:
    """Load a model. `options` are fields of the request; None leaves one unset."""
    return model_service_pb2.LoadModelRequest(
        source=source, model_id=name or "", request_id=fresh_id(request_id), **_given(options)
    )


@sendable
def discover(
    model: str, prompt: str, what: circuit_targets_pb2.GraphTarget, request_id: str | None, **options: Any
) -> circuit_service_pb2.DiscoverCircuitRequest:
    """Find a circuit."""
    given = _given(options)
    if "replacement" in given:
        given["replacement"] = set_id(given["replacement"], model)
    given["beside"] = [set_id(name, model) for name in listed(given.get("beside", ()), "beside")]
    return circuit_service_pb2.DiscoverCircuitRequest(
        model=model, prompt=prompt, target=what, request_id=fresh_id(request_id), **given
    )


@sendable
def propose(request_id: str | None, **options: Any) -> edit_service_pb2.ProposeEditRequest:
    """Find what could ship."""
    return edit_service_pb2.ProposeEditRequest(request_id=fresh_id(request_id), **_given(options))


@sendable
def ablate(
    model: str,
    prompt: str,
    what: common_pb2.LogitTarget,
    interventions: Sequence[Intervention],
    edit: Edit | str | None,
    controls: int,
    seed: int | None,
    bound_positions: Sequence[int],
    edits: Sequence[AnyEdit] = (),
) -> intervention_service_pb2.AblateRequest:
    """Measure interventions; `controls` 0 leaves them out."""
    return intervention_service_pb2.AblateRequest(
        model=model,
        prompt=prompt,
        target=what,
        interventions=messages(interventions),
        edit=edit_name(edit) if edit is not None else None,
        controls=intervention_service_pb2.MatchedControls(sets=controls, seed=seed) if controls else None,
        without_controls=not controls,
        bound_positions=bound_positions,
        edits=uses(edits),
    )


@sendable
def generate(model: str, rows: Sequence[Row], **options: Any) -> generation_service_pb2.GenerateRequest:
    """Continue rows."""
    encoded = [
        generation_service_pb2.GenerationRow(
            prompt=row.prompt,
            interventions=messages(row.interventions),
            edits=uses(row.edits),
            without_edits=row.plain,
        )
        for row in _rows(rows, Row)
    ]
    return generation_service_pb2.GenerateRequest(model=model, rows=encoded, **_given(options))


@sendable
def score(model: str, rows: Sequence[ScoreRow]) -> generation_service_pb2.ScoreRequest:
    """Score rows."""
    encoded = [
        generation_service_pb2.ScoreRow(
            prompt=row.prompt,
            continuation=row.continuation,
            interventions=messages(row.interventions),
            edits=uses(row.edits),
            without_edits=row.plain,
        )
        for row in _rows(rows, ScoreRow)
    ]
    return generation_service_pb2.ScoreRequest(model=model, rows=encoded)


@sendable
def create_edit(
    edit_id: str,
    model: str,
    interventions: Sequence[Intervention],
    request_id: str | None,
    **options: Any,
) -> edit_service_pb2.CreateEditRequest:
    """Store an edit."""
    return edit_service_pb2.CreateEditRequest(
        edit_id=edit_id.removeprefix("edits/"),
        model=resource("models", model),
        interventions=messages(interventions),
        request_id=fresh_id(request_id),
        **_given(options),
    )


@sendable
def export(
    edit: Edit | str,
    export_id: str,
    model: str | None,
    keep_rejected: bool,
    text: str | None,
    min_recovery: float | None,
    keep_shapes: bool,
    attack: bool,
    attack_steps: int | None,
    gguf: Sequence[str],
    sigstore: bool,
    identity_token: str | None,
    request_id: str | None,
) -> edit_service_pb2.ExportCheckpointRequest:
    """Compile and publish; a token is for Sigstore, and asks for it."""
    signing = export_signing_pb2.SigstoreSigning(identity_token=identity_token)
    return edit_service_pb2.ExportCheckpointRequest(
        edit=edit_name(edit),
        export_id=export_id,
        model=resource("models", model) if model else None,
        keep_rejected=keep_rejected,
        text=text,
        min_recovery=min_recovery,
        keep_shapes=keep_shapes,
        attack=attack,
        attack_steps=attack_steps,
        gguf=gguf_types(gguf),
        sigstore=signing if sigstore or identity_token is not None else None,
        request_id=fresh_id(request_id),
    )


@sendable
def exports(edit: Edit | str | None) -> edit_service_pb2.ListExportsRequest:
    """Ask for all exports, or for those of an edit."""
    named = "" if edit is None else edit_name(edit)
    return edit_service_pb2.ListExportsRequest(edit=named, page_size=500)


@sendable
def verify_export(
    name: str, identity: str | None, identity_provider: str | None
) -> edit_service_pb2.VerifyExportRequest:
    """Check a published folder."""
    return edit_service_pb2.VerifyExportRequest(
        name=resource("exports", name), identity=identity or "", identity_provider=identity_provider or ""
    )


@sendable
def plan(
    edit: Edit | str,
    model: str | None,
    text: str | None,
    min_recovery: float | None,
    keep_shapes: bool,
    gguf: Sequence[str],
) -> edit_service_pb2.PlanExportRequest:
    """Plan an export."""
    return edit_service_pb2.PlanExportRequest(
        edit=edit_name(edit),
        model=resource("models", model) if model else None,
        text=text,
        min_recovery=min_recovery,
        keep_shapes=keep_shapes,
        gguf=gguf_types(gguf),
    )


def gguf_types(kinds: Sequence[str]) -> list[gguf_pb2.GgufType.ValueType]:
    """Types of GGUF files by name.

    Raises:
        InvalidRequestError: If there is none of that name.
    """
    known = {name.value: f"GGUF_TYPE_{name.value.upper()}" for name in list(GgufType)[1:]}
    if unknown := [kind for kind in kinds if kind not in known]:
        raise InvalidRequestError(
            f"there is no GGUF type {unknown[0]}; choose from {', '.join(known)}", field="gguf"
        )
    return [gguf_pb2.GgufType.Value(known[kind]) for kind in kinds]


@sendable
def audit(
    model: str, auditor: str, request_id: str | None, **options: Any
) -> audit_service_pb2.RunAuditRequest:
    """Run an audit."""
    return audit_service_pb2.RunAuditRequest(
        model=model, auditor=auditor, request_id=fresh_id(request_id), **_given(options)
    )


@sendable
def tokenize(model: str, text: str) -> model_service_pb2.TokenizeRequest:
    """Split a text."""
    return model_service_pb2.TokenizeRequest(model=model, text=text)


@sendable
def render_chat(
    model: str, turns: Sequence[tuple[Role, str]], add_generation_prompt: bool | None
) -> model_service_pb2.ApplyChatTemplateRequest:
    """Render a chat."""
    return model_service_pb2.ApplyChatTemplateRequest(
        model=model,
        messages=[model_service_pb2.ChatMessage(role=role, content=text) for role, text in turns],
        add_generation_prompt=add_generation_prompt,
    )


def messages(interventions: Sequence[Intervention]) -> list[Any]:
    """The contract's messages of interventions.

    Raises:
        InvalidRequestError: If something else was given; a forgotten `.ablate()` is the usual reason.
    """
    given = listed(interventions, "interventions")
    for one in given:
        if not isinstance(one, Intervention):
            raise InvalidRequestError(
                f"{one!r} is no intervention; say what to do, as in feature(12, 345).ablate()",
                field="interventions",
            )
    return [encode(one) for one in given]


def _rows(rows: Sequence[RowT], kind: type[RowT]) -> tuple[RowT, ...]:
    given = listed(rows, "rows")
    for row in given:
        if not isinstance(row, kind):
            raise InvalidRequestError(f"{row!r} is no row; write {kind.__name__}(...)", field="rows")
    return given


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
