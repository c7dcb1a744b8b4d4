"""Text in, tokens out: the commands that need only the tokenizer."""

from __future__ import annotations

from collections.abc import Generator

from jinja2.exceptions import TemplateError

from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.domain.tokens import RenderChat, ResolveTarget, Text, Token, Tokenize, Tokens
from trephine.engine.models.session import Handler, Session


def tokenize(session: Session, command: Tokenize) -> Generator[None, None, Tokens]:
    """Split a text as prompts are split.

    Raises:
        EmptyPromptError: If it has no token.
        PromptTooLongError: If it exceeds the context.
    """
    hosted = session.require_model()
    yield
    return Tokens(tokens=hosted.tokens(hosted.encode(command.text)))


def render_chat(session: Session, command: RenderChat) -> Generator[None, None, Text]:
    """Apply the model's chat template.

    Raises:
        UnsupportedOptionError: If the model has none.
        InvalidRequestError: If there is no message, or the template refuses them.
    """
    hosted = session.require_model()
    yield
    if not hosted.info.has_chat_template:
        raise UnsupportedOptionError(
            f"{hosted.info.name} has no chat template; write the prompt as plain text", field="messages"
        )
    if not command.messages:
        raise InvalidRequestError("a chat needs at least one message", field="messages")
    try:
        text = hosted.tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in command.messages],
            tokenize=False,
            add_generation_prompt=command.add_generation_prompt,
        )
    except TemplateError as error:
        message = f"the chat template refuses these messages: {error}"
        raise InvalidRequestError(message, field="messages") from error
    return Text(text=str(text))


def resolve_target(session: Session, command: ResolveTarget) -> Generator[None, None, Token]:
    """Turn a target text into its one token; `#123` names a token by id.

    Raises:
        TargetNotOneTokenError: If it is not exactly one token.
        TokenOutOfRangeError: If the id does not exist.
    """
    hosted = session.require_model()
    yield
    return hosted.token(hosted.resolve_target(command.text))


HANDLERS: dict[type, Handler] = {Tokenize: tokenize, RenderChat: render_chat, ResolveTarget: resolve_target}
