"""What a graph explains, as options of a command line."""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import path_option
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.types import (
    AttentionScore,
    DirectionValue,
    FeatureValue,
    Site,
    SiteKind,
    Target,
    TokenLogits,
    TopLogits,
)

TargetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help="The token to explain: exactly one, mind the leading space, or #ID. Repeated: several, weighted "
        "by probability.",
    ),
]
TopLogitsOption = Annotated[
    int | None, typer.Option("--top-logits", help="Explain the likeliest tokens, at most so many.")
]
MassOption = Annotated[
    float | None, typer.Option(help="With --top-logits: the share of the probability they reach; unset 0.95.")
]
TargetFeatureOption = Annotated[
    str | None,
    typer.Option(metavar="[SET:]LAYER:INDEX[@POSITION]", help="Explain a feature of a set, or a neuron."),
]
TargetDirectionOption = Annotated[
    Path | None,
    path_option(
        "--target-direction",
        "Explain a direction of the stream: a vector as NumPy saves it.",
        metavar="FILE.npy",
    ),
]
SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="[KIND:]LAYER",
        help="Where the direction is read: resid_post:12 (or 12), resid_mid:12, resid_pre:12.",
    ),
]
TargetAttentionOption = Annotated[
    str | None,
    typer.Option(metavar="LAYER.HEAD:QUERY:KEY", help="Explain an attention score before the softmax."),
]
PositionsOption = Annotated[
    list[int] | None,
    typer.Option("--position", help="Where the target is read; -1 is the last. Repeatable; unset: the last."),
]

_FEATURE = re.compile(
    r"(?:(?P<set>[A-Za-z0-9][A-Za-z0-9._-]*):)?(?P<layer>\d+):(?P<index>\d+)(?:@(?P<position>-?\d+))?"
)
_SCORE = re.compile(r"(?P<layer>\d+)\.(?P<head>\d+):(?P<query>-?\d+):(?P<key>\d+)")
_SITE = re.compile(r"(?:(?P<kind>resid_pre|resid_mid|resid_post):)?(?P<layer>\d+)")
_MAGIC = b"\x93NUMPY"
_FORMATS = {"<f2": "e", "<f4": "f", "<f8": "d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A target with the positions that it is read at."""

    target: Target
    positions: tuple[int, ...]


def wanted_target(
    *,
    tokens: Sequence[str] | None,
    top_logits: int | None,
    mass: float | None,
    feature: str | None,
    direction: Path | None,
    site: str | None,
    attention: str | None,
    positions: Sequence[int] | None,
) -> Wanted:
    """Read the options of a discovery.

    Raises:
        InvalidRequestError: If none or several targets are named, or an option cannot be read.
        LocalFileError: If the vector's file cannot be read.
    """
    named = (
        bool(tokens),
        top_logits is not None,
        feature is not None,
        direction is not None,
        attention is not None,
    )
    if sum(named) != 1:
        raise InvalidRequestError(
            "name one target: --target (repeatable), --top-logits, --target-feature, --target-direction or "
            "--target-attention",
            field="target",
        )
    if mass is not None and top_logits is None:
        raise InvalidRequestError("--mass goes with --top-logits", field="mass")
    if (site is None) != (direction is None):
        raise InvalidRequestError("--target-direction and --site go together", field="site")
    at = tuple(positions or ())
    if feature is not None:
        return _feature(feature, at)
    if attention is not None:
        return _score(attention, at)
    if direction is not None and site is not None:
        return Wanted(target=read_direction(direction, site), positions=at)
    if top_logits is not None:
        return Wanted(target=TopLogits(limit=top_logits, mass=mass), positions=at)
    given = tuple(tokens or ())
    return Wanted(target=given[0] if len(given) == 1 else TokenLogits(tokens=given), positions=at)


def _feature(text: str, positions: tuple[int, ...]) -> Wanted:
    found = _FEATURE.fullmatch(text)
    if found is None:
        raise InvalidRequestError(
            f"--target-feature is [SET:]LAYER:INDEX or [SET:]LAYER:INDEX@POSITION, got {text!r}",
            field="target",
        )
    if found["position"] is not None:
        positions = (*positions, int(found["position"]))
    target = FeatureValue(
        layer=int(found["layer"]), index=int(found["index"]), replacement=found["set"] or ""
    )
    return Wanted(target=target, positions=positions)


def _score(text: str, positions: tuple[int, ...]) -> Wanted:
    found = _SCORE.fullmatch(text)
    if found is None or positions:
        raise InvalidRequestError(
            f"--target-attention is LAYER.HEAD:QUERY:KEY and takes no --position, got {text!r}",
            field="target",
        )
    layer, head, query, key = (int(found[name]) for name in ("layer", "head", "query", "key"))
    return Wanted(target=AttentionScore(layer=layer, head=head, key=key), positions=(query,))


def read_direction(path: Path, text: str) -> DirectionValue:
    """Read a direction of the stream: a vector's file, and where it is read.

    Raises:
        InvalidRequestError: If the site is none.
        LocalFileError: If the file is no vector.
    """
    found = _SITE.fullmatch(text)
    if found is None:
        raise InvalidRequestError(
            f"--site is LAYER, or resid_pre:LAYER, resid_mid:LAYER or resid_post:LAYER; got {text!r}",
            field="site",
        )
    site = Site(kind=SiteKind(found["kind"] or "resid_post"), layer=int(found["layer"]))
    return DirectionValue(site=site, vector=read_vector(path), name=path.stem)


def read_vector(path: Path) -> tuple[float, ...]:
    """Read a vector of floats as `numpy.save` writes it; nothing in the file is run.

    Raises:
        LocalFileError: If it is no such file.
    """
    try:
        kind, shape, body = _split(path.read_bytes())
    except OSError as error:
        raise LocalFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, SyntaxError, IndexError) as error:
        raise LocalFileError(f"{path} is no .npy file") from error
    code, count = _FORMATS.get(kind), math.prod(shape)
    if code is None or len(shape) == 0 or max(shape) != count or len(body) != count * struct.calcsize(code):
        raise LocalFileError(f"{path} is no vector of 16, 32 or 64 bit floats: {kind} of shape {shape}")
    return struct.unpack(f"<{count}{code}", body)


def _split(data: bytes) -> tuple[str, tuple[int, ...], bytes]:
    """Split an .npy file (format 1 to 3) into element type, shape and numbers.

    Raises:
        ValueError, SyntaxError, IndexError: If it is none.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("another magic number")
    size, start = (2, 10) if data[6] == 1 else (4, 12)
    end = start + int.from_bytes(data[8 : 8 + size], "little")
    header = ast.literal_eval(data[start:end].decode("utf-8"))
    if not isinstance(header, dict) or not isinstance(header.get("shape"), tuple):
        raise ValueError("another header")
    return str(header.get("descr")), tuple(int(length) for length in header["shape"]), data[end:]
