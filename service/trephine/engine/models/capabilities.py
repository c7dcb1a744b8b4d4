"""What can be asked of the loaded model, said honestly: what does not work is listed with its reason."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import psutil
import torch

from trephine.domain.models import Capabilities, Capability, DescribeCapabilities, LoadedSet
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Session

MAX_ROWS = 4096
"""Rows of one Generate or Score command; they are run in smaller batches."""

_OPERATIONS = (
    ("ablate", "features, directions, sites"),
    ("scale", "features, directions, sites"),
    ("set", "features, directions"),
    ("clamp", "features, directions"),
    ("add", "features, directions"),
    ("add_norm_scaled", "directions"),
    ("project_out", "directions; of a feature: its decoder out of the MLP's output"),
    ("mean_ablate", "features, directions, sites"),
    ("resample", "features, directions, sites"),
)


def describe_capabilities(
    session: Session, command: DescribeCapabilities
) -> Generator[None, None, Capabilities]:
    """List what works for the hosted model, and why the rest does not."""
    hosted = session.require_model()
    yield
    return Capabilities(
        model=hosted.info,
        capabilities=tuple(_capabilities(hosted)),
        max_prompt_tokens=hosted.info.context_length,
        max_rows=MAX_ROWS,
        memory_budget_bytes=_free_bytes(hosted),
        replacements=tuple(_loaded_sets(hosted)),
    )


def _capabilities(hosted: HostedModel) -> Iterator[Capability]:
    yield Capability(name="generate", available=True)
    yield Capability(name="score", available=True)
    yield Capability(name="activations.neurons", available=True)
    yield Capability(
        name="features",
        available=True,
        note="indexed, ranked, described, contrasted; a neuron fires where it is among the largest",
    )
    yield Capability(
        name="chat_template",
        available=hosted.info.has_chat_template,
        note="" if hosted.info.has_chat_template else "the tokenizer has no chat template",
    )
    yield from _replacements(hosted)
    yield from _interventions(hosted)
    yield Capability(name="discover.neurons", available=True, note="edges into neurons are estimates")
    yield Capability(
        name="discover.sets",
        available=True,
        note="transcoders from mlp_in to mlp_out, CLTs, SAEs on the stream, attn_out or mlp_out",
    )
    yield Capability(
        name="discover.datasets",
        available=True,
        note="circuits of behaviours over neurons or a set; edges for neurons and transcoders",
    )
    yield Capability(
        name="discover.global",
        available=True,
        note="circuits over many texts, of transcoders, cross-layer transcoders and neurons",
    )
    yield Capability(
        name="export.exact",
        available=True,
        note="neurons, heads and directions; constants where the module has a bias",
    )
    yield Capability(
        name="export.graft", available=True, note="features of ReLU and JumpReLU transcoders as extra neurons"
    )
    yield Capability(
        name="export.near_constant",
        available=True,
        note="constants without a bias, along what is nearly constant; a share is promised",
    )
    yield Capability(name="export.ridge", available=True, note="all else is fitted; a share is promised")
    yield Capability(
        name="export.lora",
        available=False,
        note="nothing is distilled; edits that keep shapes come with an adapter all the same",
    )


def _replacements(hosted: HostedModel) -> Iterator[Capability]:
    yield Capability(name="replacements.load", available=True, note="admitted on a probe text first")
    yield Capability(name="replacements.evaluate", available=True, note="with controls beside every figure")
    for loaded in _loaded_sets(hosted):
        degraded = "; degraded: it failed admission and was accepted" if loaded.degraded else ""
        yield Capability(
            name=f"replacements.{loaded.name}", available=True, note=f"{loaded.layers} layers{degraded}"
        )


def _loaded_sets(hosted: HostedModel) -> Iterator[LoadedSet]:
    for name in sorted(hosted.replacements):
        info = hosted.replacements[name].info
        yield LoadedSet(name=name, layers=len(info.layers), degraded=info.degraded, residency=info.residency)


def _interventions(hosted: HostedModel) -> Iterator[Capability]:
    for name, targets in _OPERATIONS:
        yield Capability(name=f"intervene.{name}", available=True, note=targets)
    parallel = hosted.architecture.blocks[0].parallel
    yield Capability(
        name="intervene.resid_mid",
        available=not parallel,
        note="attention and MLP run in parallel: there is no stream between them" if parallel else "",
    )
    yield Capability(
        name="intervene.frozen_patterns",
        available=True,
        note="on given texts; in generation only for changes of the prompt",
    )
    yield Capability(name="intervene.condition", available=True, note="neurons computed before the write")
    yield Capability(name="intervene.last_layer", available=False, note="changes travel through all layers")
    yield Capability(name="intervene.heads", available=False, note="every head sees a change")


def _free_bytes(hosted: HostedModel) -> int:
    if hosted.model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(hosted.model.device)[0])
    return int(psutil.virtual_memory().available)
