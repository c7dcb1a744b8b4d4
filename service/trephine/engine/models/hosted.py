"""A hosted model: the Hugging Face model as it is, its tokenizer, and the view that attribution needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trephine.domain.errors import (
    EmptyPromptError,
    PromptTooLongError,
    TargetNotOneTokenError,
    TokenOutOfRangeError,
)
from trephine.domain.models import DType, ModelInfo
from trephine.domain.tokens import Token
from trephine.engine.models.architecture import Architecture, describe_architecture
from trephine.engine.models.attention import IMPLEMENTATION, register_attention
from trephine.engine.models.beside_weights import digests_beside
from trephine.engine.models.fingerprint import hash_now
from trephine.engine.models.narrow_products import widen_products
from trephine.engine.models.quanta import finish
from trephine.engine.models.spelling import Spelling

if TYPE_CHECKING:
    from trephine.engine.replacements.sets import ReplacementSet


@dataclass(slots=True, kw_only=True)
class HostedModel:
    """One loaded model. Its weights are never changed; interventions live for one forward pass."""

    model: Any
    """The transformers model, in evaluation mode, with attention implementation `trephine`."""
    tokenizer: Any
    architecture: Architecture
    info: ModelInfo
    folder: Path
    """Where it was loaded from; never leaves the server."""
    spelling: Spelling
    beside: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the folder's files that surely hold no weights, by path, as they were when it was loaded."""
    replacements: dict[str, ReplacementSet] = field(default_factory=dict)
    """Loaded replacement sets by name; the model's own neurons are not among them."""

    def pinned(self) -> HostedModel:
        """Return a view whose sets stay what they are, whatever is loaded or unloaded meanwhile."""
        return replace(self, replacements=dict(self.replacements))

    def encode(self, text: str, *, room: int = 0, special_tokens: bool = False) -> list[int]:
        """Split a text into token ids; no token is added unless that is asked for.

        Args:
            text: Any text; special tokens may be spelled out in it.
            room: Tokens that must still fit into the context after it.
            special_tokens: Whether the tokenizer adds what it adds by itself, a first token for example.

        Raises:
            EmptyPromptError: If the text has no token.
            PromptTooLongError: If the text and the room exceed the context.
        """
        ids = self._split(text)
        if not ids:
            raise EmptyPromptError("the prompt has no token; write some text")
        if special_tokens:
            ids = self._split(text, special_tokens=True)
        limit = self.info.context_length
        if len(ids) + room > limit:
            raise PromptTooLongError(
                f"{len(ids)} prompt tokens and {room} more do not fit into a context of {limit} tokens; "
                "shorten the prompt or ask for fewer new tokens",
                tokens=len(ids),
                room=room,
                limit=limit,
            )
        return ids

    def added_tokens(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that the tokenizer by itself puts in front of a text, and behind it.

        A tokenizer that changes the text's own tokens besides is said to put all of them in front.
        """
        plain, own = self._split(text), self._split(text, special_tokens=True)
        for front in range(len(own) - len(plain) + 1):
            if own[front : front + len(plain)] == plain:
                return tuple(own[:front]), tuple(own[front + len(plain) :])
        return tuple(own), ()

    def token(self, token_id: int) -> Token:
        """Describe a token.

        Raises:
            TokenOutOfRangeError: If the vocabulary has no such id.
        """
        self.require_token(token_id)
        return self.spelling.token(token_id)

    def tokens(self, ids: Iterable[int]) -> tuple[Token, ...]:
        """Describe several tokens."""
        return tuple(self.token(i) for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Join tokens to a text, special tokens spelled out; half a character becomes U+FFFD."""
        return self.spelling.text(ids)

    def resolve_target(self, text: str) -> int:
        """Turn a target text into its one token id; `#123` names a token by id.

        Raises:
            TargetNotOneTokenError: If it splits into none or several tokens; the message lists them.
            TokenOutOfRangeError: If the id is outside the vocabulary.
        """
        if text.startswith("#") and text[1:].isdecimal():
            return self.require_token(int(text[1:]))
        ids = self._split(text)
        if len(ids) == 1:
            return ids[0]
        parts = ", ".join(f"{token.display!r} (#{token.id})" for token in self.tokens(ids)) or "none"
        raise TargetNotOneTokenError(
            f"the target {text!r} must be exactly one token, but splits into {len(ids)}: {parts}. "
            "Choose one of them (mind the leading space) or name a token by id as #123",
            target=text,
            count=len(ids),
            tokens=parts,
        )

    def require_token(self, token_id: int) -> int:
        """Return the id if the vocabulary has it.

        Raises:
            TokenOutOfRangeError: If it does not.
        """
        if not 0 <= token_id < self.info.d_vocab:
            raise TokenOutOfRangeError(
                f"token id {token_id} is outside the vocabulary (0 to {self.info.d_vocab - 1})",
                token=token_id,
                d_vocab=self.info.d_vocab,
            )
        return token_id

    def _split(self, text: str, *, special_tokens: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])


def host(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    folder: Path,
    weight_hash: str | None = None,
    parent_hash: str | None = None,
    beside: Mapping[str, str] | None = None,
) -> HostedModel:
    """Make a loaded transformers model a hosted one: our attention, evaluation mode, no gradients.

    Args:
        model: A causal language model of a verified architecture.
        tokenizer: Its fast tokenizer.
        name: Resource id.
        folder: Where it came from.
        weight_hash: The hash of its weights; computed here, in one go, if None.
        parent_hash: The hash before an adapter was merged; the weight hash if None.
        beside: Digests of the files beside the weights, from before they were read; taken here if None.

    Raises:
        UnsupportedArchitectureError: If the architecture is not verified.
    """
    architecture = describe_architecture(model)
    register_attention()
    model.set_attn_implementation(IMPLEMENTATION)
    widen_products(model.eval().requires_grad_(False))
    digest = hash_now(model) if weight_hash is None else weight_hash
    return HostedModel(
        model=model,
        tokenizer=tokenizer,
        architecture=architecture,
        info=_describe(model, tokenizer, architecture, name, digest, parent_hash or digest),
        folder=folder,
        spelling=Spelling(tokenizer),
        beside=finish(digests_beside(folder)) if beside is None else beside,
    )


def _describe(
    model: Any, tokenizer: Any, architecture: Architecture, name: str, weight_hash: str, parent_hash: str
) -> ModelInfo:
    parameters = list(model.parameters())
    mlp = architecture.blocks[0].mlp
    return ModelInfo(
        name=name,
        architecture=architecture.name,
        weight_hash=weight_hash,
        parent_hash=parent_hash,
        dtype=cast(DType, str(model.dtype).removeprefix("torch.")),
        device=str(model.device),
        n_layers=architecture.n_layers,
        n_heads=architecture.n_heads,
        n_kv_heads=architecture.n_kv_heads,
        d_model=architecture.d_model,
        d_mlp=architecture.d_mlp,
        d_vocab=architecture.d_vocab,
        context_length=int(model.config.max_position_embeddings),
        n_parameters=sum(p.numel() for p in parameters),
        tied_embeddings=architecture.unembedding.weight is architecture.embedding.weight,
        has_mlp_bias=any(b is not None for b in (mlp.b_gate, mlp.b_in, mlp.b_down)),
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        eos_token_ids=_end_tokens(model, tokenizer),
        bos_token_id=model.config.bos_token_id,
        memory_bytes=sum(p.numel() * p.element_size() for p in parameters),
    )


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Collect the ids that end a text: of the generation config, else the config, and the tokenizer's."""
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    if ends is None:
        ends = model.config.eos_token_id
    listed = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if tokenizer.eos_token_id is not None:
        listed.append(tokenizer.eos_token_id)
    return tuple(sorted({int(i) for i in listed}))
