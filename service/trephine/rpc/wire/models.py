"""Models, capabilities, tokens and chats."""

from __future__ import annotations

from typing import get_args

from trephine.domain.errors import InvalidRequestError
from trephine.domain.models import Capabilities, DType, ModelInfo
from trephine.domain.tokens import ChatMessage, RenderChat, Token
from trephine.rpc.wire.common import token_to_wire
from trephine.rpc.wire.fields import clean, qualified, within
from trephine.rpc.wire.replacements import residency_to_wire
from trephine.v1 import model_service_pb2 as pb

STATES = {
    "available": pb.MODEL_STATE_AVAILABLE,
    "loading": pb.MODEL_STATE_LOADING,
    "loaded": pb.MODEL_STATE_LOADED,
}


def model_to_wire(name: str, state: str, info: ModelInfo | None) -> pb.Model:
    """Write a model; everything but name and state is set once it is loaded."""
    message = pb.Model() if info is None else _info_to_wire(info)
    message.name = qualified("models", name)
    message.state = STATES[state]
    return message


def capabilities_to_wire(found: Capabilities) -> pb.Capabilities:
    """Write what works for a model."""
    return pb.Capabilities(
        model=model_to_wire(found.model.name, "loaded", found.model),
        capabilities=[
            pb.Capability(name=clean(one.name), available=one.available, note=clean(one.note))
            for one in found.capabilities
        ],
        max_prompt_tokens=found.max_prompt_tokens,
        max_rows=found.max_rows,
        memory_budget_bytes=found.memory_budget_bytes,
        replacements=[
            pb.LoadedSet(
                name=clean(loaded.name),
                layers=loaded.layers,
                degraded=loaded.degraded,
                residency=residency_to_wire(loaded.residency),
            )
            for loaded in found.replacements
        ],
    )


def dtype_from_wire(name: str, field: str = "dtype") -> DType:
    """Read a number type; empty means float32.

    Raises:
        InvalidRequestError: Listing the types.
    """
    for dtype in get_args(DType):
        if name == dtype:
            return dtype  # type: ignore[no-any-return]  # get_args of a Literal is untyped
    if name:
        raise InvalidRequestError(f"{field} must be one of {', '.join(get_args(DType))}", field=field)
    return "float32"


def render_chat_from_wire(request: pb.ApplyChatTemplateRequest) -> RenderChat:
    """Read a chat; a missing `add_generation_prompt` means true."""
    if not request.messages:
        raise InvalidRequestError("at least one message is needed", field="messages")
    messages = []
    for index, message in enumerate(request.messages):
        with within(f"messages[{index}]"):
            messages.append(_chat_message_from_wire(message))
    add = request.add_generation_prompt if request.HasField("add_generation_prompt") else True
    return RenderChat(messages=tuple(messages), add_generation_prompt=add)


def tokens_to_wire(tokens: tuple[Token, ...]) -> pb.TokenizeResponse:
    """Write a split text."""
    return pb.TokenizeResponse(tokens=[token_to_wire(token) for token in tokens])


def _chat_message_from_wire(message: pb.ChatMessage) -> ChatMessage:
    match message.role:
        case "system" | "user" | "assistant" as role:
            return ChatMessage(role=role, content=message.content)
        case other:
            raise InvalidRequestError(f"role must be system, user or assistant, got {other!r}", field="role")


def _info_to_wire(info: ModelInfo) -> pb.Model:
    return pb.Model(
        architecture=clean(info.architecture),
        weight_hash=clean(info.weight_hash),
        parent_hash=clean(info.parent_hash),
        dtype=clean(info.dtype),
        device=clean(info.device),
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        n_kv_heads=info.n_kv_heads,
        d_model=info.d_model,
        d_mlp=info.d_mlp,
        d_vocab=info.d_vocab,
        context_length=info.context_length,
        n_parameters=info.n_parameters,
        tied_embeddings=info.tied_embeddings,
        has_mlp_bias=info.has_mlp_bias,
        has_chat_template=info.has_chat_template,
        eos_token_ids=info.eos_token_ids,
        bos_token_id=info.bos_token_id,
        memory_bytes=info.memory_bytes,
    )
