"""What an edit rests on: circuits, audits and single findings, evaluations, and data by its content."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.fields import printable

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(circuits|datasetCircuits|circuitVerifications|evaluations|proposals|exports|featureIndexes|spuriousRemovals)/{_ID}",
        rf"audits/{_ID}(#{_ID})?",
        rf"edits/{_ID}(@[1-9][0-9]*)?(/evaluations/{_ID})?",
        r"([^\s@/]{1,64}@)?sha256:[0-9a-f]{64}",
    )
)
_MOST = 64


def evidence_from_wire(names: Sequence[str], field: str = "evidence") -> tuple[str, ...]:
    """Read what an edit rests on, each once, in order.

    Whether it is here is asked later, by `trephine.app.edits.edit_evidence`.

    Raises:
        InvalidRequestError: Naming the one that has no known form.
    """
    if len(names) > _MOST:
        raise InvalidRequestError(f"{field} holds {len(names)} names, at most {_MOST} are kept", field=field)
    for place, name in enumerate(names):
        if not any(form.fullmatch(name) for form in _FORMS):
            raise InvalidRequestError(
                f"{field}[{place}] is {printable(name)!r}; write circuits/ID, datasetCircuits/ID, audits/ID, "
                "audits/ID#FINGERPRINT for one finding, edits/ID/evaluations/ID, or NAME@sha256:HEX for a "
                "dataset",
                field=f"{field}[{place}]",
            )
    return tuple(dict.fromkeys(names))
