"""What can be said of a removal before the model is run."""

from __future__ import annotations

from collections.abc import Generator

from trephine.domain.commands import Progress
from trephine.domain.spurious_checks import CheckedSpuriousRemoval, CheckSpuriousRemoval
from trephine.domain.spurious_heads import ClassifierHead, RewardHead, TokenHead
from trephine.engine.models.session import Handler, Session
from trephine.engine.spurious.heads import given_score, token_head
from trephine.engine.spurious.study import lay_out


def check_spurious_removal(
    session: Session, command: CheckSpuriousRemoval
) -> Generator[Progress | None, None, CheckedSpuriousRemoval]:
    """Refuse what `remove_spurious_features` would refuse before its first pass, without running the model.

    Whether the other weights of a given head's folder are the hosted model's is left to the work: that
    reads them all.

    Raises:
        TrephineError: Naming the text, the label or the option that cannot be used.
    """
    hosted, asked = session.require_model().pinned(), command.command
    laid = lay_out(hosted, asked)
    yield None
    if isinstance(asked.decision, TokenHead):
        token_head(hosted, asked.decision)
    elif isinstance(asked.decision, ClassifierHead | RewardHead):
        given_score(hosted, asked.decision, laid.data.labels)
    data = laid.data
    lengths = [len(one.ids) for one in (*data.training, *data.held_out, *data.test, *data.attribute)]
    return CheckedSpuriousRemoval(
        features=laid.space.count, texts=len(lengths), tokens=sum(lengths), longest=max(lengths)
    )


HANDLERS: dict[type, Handler] = {CheckSpuriousRemoval: check_spurious_removal}
