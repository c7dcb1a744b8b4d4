"""What an export is called on the server: the same for the same command, another for any other."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client.plain_json import parse_json
from trephine.client.types import Edit

_LONGEST = 63
"""Characters that the service allows."""
_SLUG = 40


def export_id_for(
    folder: str | Path,
    edit: Edit,
    *,
    model: str | None = None,
    text: str | None = None,
    min_recovery: float | None = None,
    keep_shapes: bool = False,
    attack: bool = False,
    attack_steps: int | None = None,
    gguf: Sequence[str] = (),
    sigstore: bool = False,
    identity_token: str | None = None,
) -> str:
    """A name on the server for a folder here: what the folder is called, the edit's digest, the options'.

    The edit's is of all that the export's card says of it: name, version, content, author, reason. Two edits
    that do the same have exports of their own, as each is signed with what its author wrote. The same edit
    with the same options into the same folder finds the same export again, so that nothing is compiled twice.
    Any option that changes what is written, measured or signed gives a name of its own.

    Args:
        folder: Where the export is to lie; only its name counts.
        edit: What is exported.
        model: Which model it is compiled from; unset, or named outright: the edit's own.
        text: Whole; its sha256 goes into the name.
        min_recovery: As in `export`; so are all that follow.
        keep_shapes: Adds no neurons.
        attack: Attacks the result.
        attack_steps: Of its training.
        gguf: Types of files, in any order.
        sigstore: Signs as the server's identity.
        identity_token: Signs as whom it names: who that is counts, not the token, which is another each time.
    """
    keyless = sigstore or identity_token is not None
    options = {
        "model": _other_model(model, edit),
        "text": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        "min_recovery": None if min_recovery is None else float(min_recovery),
        "keep_shapes": keep_shapes or None,
        "attack": attack or None,
        "attack_steps": attack_steps,
        "gguf": sorted(set(gguf)) or None,
        "sigstore": keyless or None,
        "signer": None if identity_token is None else _signer_of(identity_token),
    }
    words = (("attacked", attack), ("gguf", bool(gguf)), ("sigstore", keyless))
    told = "".join(f"-{word}" for word, said in words if said)
    rest = f"-{_edit_digest(edit)}{told}{_digest(options)}"
    slug = re.sub(r"[^a-z0-9.-]+", "-", Path(folder).name.lower()).strip("-.") or "export"
    return slug[: min(_SLUG, _LONGEST - len(rest))] + rest


def _other_model(model: str | None, edit: Edit) -> str | None:
    named, own = ((name or "").removeprefix("models/") for name in (model, edit.made_for.model))
    return named if named and named != own else None


def _edit_digest(edit: Edit) -> str:
    """Twelve digits of what an export's card says of its edit."""
    told = [edit.name, edit.version, edit.content_hash, edit.author, edit.reason]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _digest(options: dict[str, Any]) -> str:
    """Eight digits of the options that were given; nothing where none was, so that these need no word."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return ""
    return "-" + hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]


def _signer_of(token: str) -> list[str]:
    """Whom an OpenID Connect token names: issuer, subject, address. Nothing is proved by reading them here.

    Empty where the token cannot be read: the service refuses it, and says why.
    """
    try:
        body = token.split(".")[1]
        claims = parse_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return [str(claims.get(name, "")) for name in ("iss", "sub", "email")]
    except (IndexError, binascii.Error, ValueError, AttributeError):
        return []
