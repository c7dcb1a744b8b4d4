"""Is a set this model's? What its own word says against what is loaded, and whether its sites are there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trephine.domain.errors import BrokenReplacementError, TrephineError
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import require_site, site_width

_FAMILIES = (
    ("gpt2", "GPT2"),
    ("pythia", "GPTNeoX"),
    ("gptneox", "GPTNeoX"),
    ("gemma2", "Gemma2"),
    ("gemma3", "Gemma3"),
    ("qwen3", "Qwen3"),
    ("qwen2", "Qwen2"),
    ("smollm2", "Llama"),
    ("llama", "Llama"),
)
"""(what a model's name holds, what its class is then called)."""
_SIZE = re.compile(r"(?<![\d.a-z])(\d+(?:\.\d+)?)\s*([mb])(?![a-z])")
_FACTOR = 2.0
"""Names round and some leave embeddings out: Gemma-2-2b has 2.6 billion parameters, Pythia-70m 70 million."""


def check_model(hosted: HostedModel, model_name: str | None) -> None:
    """Refuse a set that by its own word was trained on another model.

    A name proves little, so only what no name of this model could say counts: another family, or a size
    that is off by more than a factor of two.

    Raises:
        BrokenReplacementError: If the set names another model.
    """
    if not model_name:
        return
    name, info = model_name.lower().rsplit("/", 1)[-1], hosted.info
    plain = re.sub(r"[^a-z0-9]", "", name)
    family = next((expected for word, expected in _FAMILIES if plain.startswith(word)), None)
    size = _SIZE.search(name)
    claimed = float(size[1]) * (1e6 if size[2] == "m" else 1e9) if size else None
    wrong_family = family is not None and not info.architecture.startswith(family)
    ratio = info.n_parameters / claimed if claimed else 1.0
    if wrong_family or not 1 / _FACTOR <= ratio <= _FACTOR:
        raise BrokenReplacementError(
            f"the set says that it was trained on {model_name}; {info.name} is a {info.architecture} of "
            f"{info.n_parameters / 1e6:.0f} million parameters. Load the set made for this model",
            trained_on=model_name,
            model=info.name,
        )


def check_sites(hosted: HostedModel, infos: Sequence[ReplacementLayerInfo]) -> None:
    """Refuse layers whose sites this model lacks, or whose widths are not the sites'.

    Raises:
        BrokenReplacementError: Naming the layer, the site and both widths.
    """
    for info in infos:
        _check_site(hosted, info, info.site_in, info.d_in)
        for site in info.sites_out:
            _check_site(hosted, info, site, info.d_out)


def _check_site(hosted: HostedModel, info: ReplacementLayerInfo, site: Site, width: int) -> None:
    named = f"{site.kind.value} of layer {site.layer}"
    try:
        require_site(hosted.architecture, site)
    except TrephineError as error:
        raise BrokenReplacementError(
            f"the replacement layer {info.layer} needs {named}, which {hosted.info.name} does not have: "
            f"{error.message}. Load the set made for this model",
            layer=info.layer,
            site=site.kind.value,
        ) from error
    expected = site_width(hosted.architecture, site)
    if width != expected:
        raise BrokenReplacementError(
            f"the replacement layer {info.layer} is {width} wide at {named}, and {hosted.info.name} is "
            f"{expected} wide there. Load the set made for this model",
            layer=info.layer,
            site=site.kind.value,
            width=width,
            expected=expected,
        )
