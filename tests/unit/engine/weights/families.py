"""Every export tier on every family: compiled, written, loaded by stock transformers, measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.resident_sets import reside, resident_set, sae
from tests.unit.engine.exporting import edit_of
from tests.unit.engine.interventions import direction, neuron
from tests.unit.engine.weights.folders import FIT, MEASURED, feature, parent, written
from trephine.client.deltas import apply_delta, make_delta
from trephine.client.digests import file_digest, listed_digests
from trephine.client.signatures import SUMS
from trephine.client.verification import MANIFEST
from trephine.domain.interventions import Ablate, Add, Clamp, Intervention, ProjectOut, Scale
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.compiling import WeightProgram, compile_weights

FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "gemma2")
COMMON = {"qwen2": 2.0, "qwen3": 2.0, "gemma2": 0.5}
"""How much the embeddings share: a direction that is planted, as training plants one (see `parent`). Without
biases a graft lives on it, and without it none of these passes; behind a post-norm it makes room as well."""
LAYER, CALIBRATION = 1, FIT
SHARES = {"relu": 0.3, "jumprelu": 0.3, "resid_post": 0.3, "mlp_out": 1.0}
"""Set -> the share of the text on which its feature fires, as nearly as one does."""
V = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
HEAD = [[float(n == unit) for n in range(32)] for unit in range(8, 16)]
"""What the second of four heads of width 8 hands to attention's output projection."""
WRITERS = (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One family's parent with sets of features beside it."""

    family: str
    hosted: HostedModel
    features: dict[str, tuple[int, float]]
    """Set -> a feature of `LAYER` that fires on part of the text, and its median where it does."""

    def edit(self, tier: str) -> tuple[Intervention, ...]:
        """Return a tier's interventions."""
        return TIERS[tier](self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a folder does beside the intervened runtime."""

    program: WeightProgram
    folder: Path
    left: float
    """KL(intervened || folder), nats per token."""
    edit: float
    """KL(intervened || original)."""
    recovery: float
    recovery_firing: float
    """On tokens on which the edited features fire; of other edits, all."""
    firing: int


def scene(family: str, folder: Path, *, common: float | None = None) -> Scene:
    """Make a parent: Llama without biases, as released ones are; GPT-2 has them.

    Args:
        family: One of `FAMILIES`.
        folder: To make.
        common: What the embeddings share; None: the family's in `COMMON`.
    """
    shared = COMMON.get(family, 0.0) if common is None else common
    hosted = parent(family, folder, common=shared, biases=family != "llama")
    for kind in ("relu", "jumprelu", "resid_post"):
        resident_set(hosted, kind, name=kind)
    written_by = [Site(kind=SiteKind.MLP_OUT, layer=n) for n in range(hosted.architecture.n_layers)]
    reside(hosted, [sae(hosted, site) for site in written_by], "mlp_out")
    features = {name: _chosen(hosted, name, share) for name, share in SHARES.items()}
    return Scene(family=family, hosted=hosted, features=features)


def _chosen(hosted: HostedModel, name: str, share: float) -> tuple[int, float]:
    """Take the feature that fires on the share of the text nearest to what is asked."""
    answers = _activations(hosted, name, CALIBRATION)
    index = int(((answers > 0).double().mean(0) - share).abs().argmin())
    return index, float(answers[:, index][answers[:, index] > 0].median())


@torch.inference_mode()
def _activations(hosted: HostedModel, name: str, windows: list[tuple[int, ...]]) -> Tensor:
    """Return a set's activations at `LAYER`, `(n, d_sae)`."""
    kinds = {"resid_post": SiteKind.RESID_POST, "mlp_out": SiteKind.MLP_OUT}
    site = Site(kind=kinds.get(name, SiteKind.MLP_IN), layer=LAYER)
    inputs = stacked(finish(captured(hosted, windows, [site], ()))[site])
    with opened(hosted, name, [LAYER]) as layers:
        return layers[LAYER].encode(inputs).activations


@torch.inference_mode()
def mlp_inputs(hosted: HostedModel) -> Tensor:
    """Return what the MLP of `LAYER` reads on the calibration text, `(n, d_in)`."""
    site = Site(kind=SiteKind.MLP_IN, layer=LAYER)
    return stacked(finish(captured(hosted, CALIBRATION, [site], ()))[site])


# --- tiers ---------------------------------------------------------------------------------------


def _ablated(name: str) -> Callable[[Scene], tuple[Intervention, ...]]:
    return lambda s: (feature(LAYER, s.features[name][0], Ablate(), name=name),)


def _clamped(s: Scene) -> tuple[Intervention, ...]:
    index, median = s.features["relu"]
    return (feature(LAYER, index, Clamp(low=0.0, high=0.5 * median), name="relu"),)


TIERS: dict[str, Callable[[Scene], tuple[Intervention, ...]]] = {
    "constant, MLP": lambda s: (direction(SiteKind.MLP_OUT, LAYER, V, Add(amount=0.5)),),
    "constant, attention": lambda s: (direction(SiteKind.ATTN_OUT, LAYER, V, Add(amount=0.5)),),
    "neuron scaled": lambda s: (neuron(LAYER, 5, Scale(factor=-2.0)),),
    "head scaled": lambda s: tuple(
        direction(SiteKind.ATTN_Z, LAYER, unit, Scale(factor=0.2)) for unit in HEAD
    ),
    "direction out of every writer": lambda s: (
        direction(SiteKind.EMBED, 0, V, ProjectOut()),
        *(direction(kind, n, V, ProjectOut()) for n in range(3) for kind in WRITERS),
    ),
    "graft, ReLU": _ablated("relu"),
    "graft, JumpReLU": _ablated("jumprelu"),
    "graft, clamp": _clamped,
    "ridge": _ablated("resid_post"),
    "ridge, dense": _ablated("mlp_out"),
    "delta": _ablated("relu"),
    "no-op": _ablated("relu"),
}


@torch.inference_mode()
def outcome(scene: Scene, tier: str, folder: Path) -> Outcome:
    """Compile, write, load with stock transformers, measure; `delta` goes through one, `no-op` is a copy."""
    hosted, edit = scene.hosted, scene.edit(tier)
    program = finish(
        compile_weights(hosted, read_entries(hosted.folder), edit_of(hosted, *edit), CALIBRATION)
    )
    if tier == "no-op":
        shutil.copytree(hosted.folder, folder)
    else:
        written(hosted, program, folder)
    if tier == "delta":
        folder = through_delta(hosted.folder, folder)
    return _measured(scene, edit, program, folder)


def through_delta(source: Path, folder: Path) -> Path:
    """Turn a folder into a delta of its parent and back."""
    files = [
        {"path": path.name, "sha256": file_digest(path)[1]} for path in sorted(source.glob("*.safetensors"))
    ]
    recorded = {"parent": {"files": files, "left_out": {}}}
    (folder / MANIFEST).write_text(json.dumps(recorded))  # what makes a folder an export, with its list
    digests = {path.name: file_digest(path)[1] for path in folder.iterdir() if path.name != SUMS}
    (folder / SUMS).write_text(listed_digests(digests, apart=SUMS))
    delta = make_delta(source, folder, folder.with_suffix(".delta"))
    return apply_delta(delta, source, folder.with_suffix(".again"))


def _measured(scene: Scene, edit: tuple[Intervention, ...], program: WeightProgram, folder: Path) -> Outcome:
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    exported = list(stock(torch.tensor(MEASURED), use_cache=False).logits.float())
    intervened, plain = (windows_logits(scene.hosted, MEASURED, each) for each in (edit, ()))
    left, moved = (
        torch.cat([kl_divergence(p, q) for p, q in zip(intervened, other, strict=True)])
        for other in (exported, plain)
    )
    fires = _firing(scene, edit, len(left))
    return Outcome(
        program=program,
        folder=folder,
        left=float(left.mean()),
        edit=float(moved.mean()),
        recovery=1 - float(left.mean() / moved.mean()),
        recovery_firing=1 - float(left[fires].mean() / moved[fires].mean()),
        firing=int(fires.sum()),
    )


def _firing(scene: Scene, edit: tuple[Intervention, ...], count: int) -> Tensor:
    ref = getattr(edit[0].target, "feature", None)
    if not isinstance(ref, FeatureRef) or ref.replacement not in scene.features:
        return torch.ones(count, dtype=torch.bool)
    return _activations(scene.hosted, ref.replacement, MEASURED)[:, ref.index] > 0


# --- laws ----------------------------------------------------------------------------------------


def standing(found: Outcome) -> str:
    """Say what a folder may be called: `exact`, `graft`, `fitted`, or `refused` at the gate of fits."""
    if found.program.fitted:
        return "fitted" if found.recovery >= 0.9 else "refused"
    return "graft" if found.program.grafted else "exact"


def reason(program: WeightProgram) -> str:
    """Return what the plan says of the part that is not the runtime itself; empty if there is none."""
    if not program.fitted:
        return ""
    said = [
        note.description for note in program.notes.values() if note.tier != "exact" or note.predicted_error
    ]
    for word in ("because ", "fitted: ", "no biases here: ", "along what is nearly constant"):
        for text in said:
            if word in text:
                start = text.index(word) + (0 if word.startswith("along") else len(word))
                return text[start:].removesuffix(", written into its module")
    raise ValueError(f"a program that is fitted says nowhere why: {said}")
