"""A tiny model to fit to, its activations, and requests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.builders import tiny_folder
from trephine.domain.fitting import FitRecipe
from trephine.domain.models import ModelSource
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.dictionary import Dictionary, Place
from trephine.engine.fitting.fit import Fit
from trephine.engine.fitting.request import FitRequest, Workspace, request_text
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.loading import load_hosted
from trephine.engine.models.quanta import finish

SMALL = FitRecipe(
    kind=LayerKind.CROSS_LAYER_TRANSCODER,
    d_sae=96,
    k=6,
    tokens=24_000,
    context_tokens=32,
    batch_tokens=512,
    dead_after_tokens=6000,
    lr=3e-3,
)
WORDS = (
    "The cat went to the store and gave Mary a drink . When John is of France the dog has a capital in Paris"
)


def text(words: int = 4000, seed: int = 0) -> str:
    """Make a text of random words, the same every time."""
    chosen = torch.randint(len(WORDS.split()), (words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(WORDS.split()[i] for i in chosen.tolist())


def hosted_from_folder(folder: Path, device: str = "cpu") -> HostedModel:
    """Load a model's folder as the engine does."""
    return finish(load_hosted(ModelSource(name="tiny", folder=str(folder), device=device)))


def model_folder(path: Path, family: str = "llama") -> Path:
    """Save a two-layer model once."""
    return path if path.exists() else tiny_folder(family, path, n_layers=2)


def kept(folder: Path) -> Workspace:
    """Return where the fit of a set keeps its work."""
    return Workspace(work=folder.with_name(f"{folder.name}-work"))


def request(folder: Path, hosted: HostedModel, corpus: Path | None, **changes: Any) -> FitRequest:
    """Ask for a fit of the small recipe, changed."""
    made = FitRequest(
        recipe=replace(SMALL, **changes),
        corpus=None if corpus is None else str(corpus),
        corpus_name="words",
        folder=str(folder),
        checkpoints=str(kept(folder).work),
        model_folder=str(hosted.folder),
        model_name="tiny",
        weight_hash=hosted.info.weight_hash,
        dtype="float32",
        device=hosted.model.device.type,
        threads=1,
    )
    kept(folder).work.mkdir(parents=True, exist_ok=True)
    kept(folder).request.write_text(request_text(made))
    return made


def fit(made: FitRequest, hosted: HostedModel, say: Any = lambda progress: None) -> Any:
    """Carry a request out in this process."""
    return Fit(request=made, hosted=hosted, say=say).run()


def random_dictionary(
    layer: int, *, d: int = 32, d_sae: int = 24, outputs: int = 1, seed: int = 0
) -> Dictionary:
    """Make a transcoder with random weights and units that are not 1."""
    generator = torch.Generator().manual_seed(seed + layer)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    place = Place(
        site_in=Site(kind=SiteKind.MLP_IN, layer=layer),
        sites_out=tuple(Site(kind=SiteKind.MLP_OUT, layer=j) for j in range(layer, layer + outputs)),
        scale_in=2.0,
        scales_out=tuple(0.5 * 2**j for j in range(outputs)),
        variances=(1.0,) * outputs,
    )
    weights = {
        "W_enc": draw(d, d_sae),
        "b_enc": draw(d_sae),
        "W_dec": draw(outputs, d_sae, d),
        "b_dec": draw(d),
        "W_skip": draw(d, d),
    }
    return Dictionary(place, weights)


@cache
def copying(layer: int, kind: SiteKind = SiteKind.RESID_POST, d: int = 32) -> Dictionary:
    """Make an SAE that reproduces its input: features are plus and minus every coordinate."""
    site = Site(kind=kind, layer=layer)
    place = Place(site_in=site, sites_out=(site,), scale_in=1.0, scales_out=(1.0,), variances=(1.0,))
    eye = torch.eye(d)
    both = torch.cat([eye, -eye])
    weights = {"W_enc": both.T, "b_enc": torch.zeros(2 * d), "W_dec": both[None], "b_dec": torch.zeros(d)}
    return Dictionary(place, weights)
