"""Scripts of a fake engine that really compute: the engine's own handlers, run to their end here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trephine.domain.models import LoadModel
from trephine.engine.features import handlers as features
from trephine.engine.models import text
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Handler, Session
from trephine.engine.runs import activations


def thinking_scripts(hosted: HostedModel) -> Mapping[type, Any]:
    """Return scripts for every command about texts and features, answered by a hosted tiny model."""
    handlers = {**text.HANDLERS, **activations.HANDLERS, **features.HANDLERS}
    session = Session(hosted=hosted)
    return {
        LoadModel: lambda command: replace(hosted.info, name=command.source.name),
        **{kind: _answer(session, work) for kind, work in handlers.items()},
    }


def _answer(session: Session, handler: Handler) -> Callable[[Any], Any]:
    return lambda command: finish(handler(session, command))
