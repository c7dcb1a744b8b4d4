"""Which set is looked at, and how its features are written on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import read_feature
from trephine.client.cli.invocation import Invocation
from trephine.client.cli.sets import open_set
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.features import ModelFeatures
from trephine.client.trephine import Trephine
from trephine.client.types.common import FeatureRef

SetOption = Annotated[
    str,
    typer.Option("--set", "-s", metavar="SET", help="A replacement set, or a folder; unset: the neurons."),
]
IndexOption = Annotated[
    str | None, typer.Option("--index", help="featureIndexes/...; unset: the newest that fits.")
]
FeatureArgument = Annotated[str, typer.Argument(metavar="LAYER:INDEX", help="The feature, as in 12:345.")]
FeaturesArgument = Annotated[
    list[str], typer.Argument(metavar="LAYER:INDEX...", help="Features, as in 12:345 20:17.")
]
LayersOption = Annotated[str | None, typer.Option(help="Only these, as in 0,5,10-12.")]

OWN = ("", "neurons")


def features_of(given: Invocation, trephine: Trephine, model: str, set_name: str) -> ModelFeatures:
    """The features of a set beside a model; both are loaded if they are not yet."""
    loaded = given.load(trephine, model)
    if set_name in OWN:
        return loaded.features()
    return loaded.features(open_set(given, trephine, loaded, set_name).set_id)


def address(text: str, set_name: str) -> FeatureRef:
    """Read `12:345`, or `my-set:12:345` where that is the set that is looked at.

    Raises:
        InvalidRequestError: If it is something else, or of another set.
    """
    target = read_feature(text).target
    if not isinstance(target, FeatureRef):
        raise InvalidRequestError(f"{text!r} is no feature", field="feature")
    if target.replacement not in (*OWN, Path(set_name).name):
        raise InvalidRequestError(
            f"{text!r} is of another set; look at it with --set {target.replacement}", field="feature"
        )
    return FeatureRef(layer=target.layer, index=target.index)


def addresses(texts: Sequence[str], set_name: str) -> list[FeatureRef]:
    """Read several features."""
    return [address(text, set_name) for text in texts]


def texts_of(path: Path) -> list[str]:
    """Read one text per line; blank lines are left out.

    Raises:
        LocalFileError: If the file cannot be read as UTF-8.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise LocalFileError(f"cannot read {path}: {failure}") from failure
    return [line for line in lines if line.strip()]
