"""Texts as pooled vectors, of the model as it is or with features removed; no block above the site is run."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import NonFiniteValueError
from trephine.domain.sites import NEURONS, FeatureRef, Site
from trephine.domain.spurious_heads import Pooling
from trephine.engine.dataset_circuits.packs import Layout, lay_out
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.sites import Touch, touching
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.partial_passes import ending_at

QUANTUM_TOKENS = 384
"""Tokens of one forward pass; a longer text is a pass of its own."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """What a linear head reads."""

    layer: int | None
    """`resid_post` of a layer; None: the final norm's output."""
    pooling: Pooling

    def pool(self, rows: Tensor, layout: Layout) -> Tensor:
        """Pool `(n_rows, d_model)` of a pack to float32 `(n_texts, d_model)`."""
        wide = rows.float()
        if self.pooling is Pooling.LAST:
            return wide[layout.last]
        later = (layout.position > 0).to(wide.dtype)[:, None]
        sums = wide.new_zeros(len(layout.lengths), wide.shape[1]).index_add_(0, layout.owner, wide * later)
        counts = torch.tensor(layout.lengths, device=wide.device, dtype=wide.dtype) - 1
        return sums / counts[:, None]

    def spread(self, direction: Tensor, layout: Layout) -> Tensor:
        """Return the derivative of `pooled @ direction` by the rows, `(n_rows, d_model)`."""
        if self.pooling is Pooling.LAST:
            rows = direction.new_zeros(layout.n_rows, len(direction))
            rows[layout.last] = direction
            return rows
        counts = torch.tensor(layout.lengths, device=direction.device, dtype=direction.dtype) - 1
        weight = (layout.position > 0).to(direction.dtype) / counts[layout.owner]
        return weight[:, None] * direction


def batches(texts: Sequence[Ids]) -> Iterator[slice]:
    """Split texts, in order, into passes of at most `QUANTUM_TOKENS` tokens."""
    start, tokens = 0, 0
    for number, ids in enumerate(texts):
        if tokens and tokens + len(ids) > QUANTUM_TOKENS:
            yield slice(start, number)
            start, tokens = number, 0
        tokens += len(ids)
    if tokens:
        yield slice(start, len(texts))


def pool_texts(
    hosted: HostedModel, readout: Readout, texts: Sequence[Ids], removed: Sequence[FeatureRef] = ()
) -> Generator[int, None, Tensor]:
    """Pool texts, one pass a quantum; yield how many are done.

    Args:
        hosted: The model.
        readout: Where, and how.
        texts: Token ids, at least two each.
        removed: Features that are set to zero everywhere, as an edit of them does; error terms stay live.

    Returns:
        float32 `(n_texts, d_model)`, on the CPU.

    Raises:
        NonFiniteValueError: If a vector holds NaN or infinity, saying of which text, and where.
    """
    parts: list[Tensor] = []
    for chosen in batches(texts):
        layout = lay_out(texts[chosen], hosted.model.device)
        with removing(hosted, removed):
            rows = _run(hosted, readout.layer, layout)
        parts.append(readout.pool(rows, layout).cpu())
        _require_numbers(hosted, readout, parts[-1], chosen.start, removed)
        yield chosen.stop
    return torch.cat(parts) if parts else torch.zeros(0, hosted.info.d_model)


def _require_numbers(
    hosted: HostedModel, readout: Readout, pooled: Tensor, start: int, removed: Sequence[FeatureRef]
) -> None:
    wrong = (~torch.isfinite(pooled).all(1)).nonzero()
    if len(wrong):
        where = "the final norm's output" if readout.layer is None else f"resid_post of layer {readout.layer}"
        without = f" with {len(removed)} features removed" if removed else ""
        raise NonFiniteValueError(
            f"{where} is NaN or infinite{without} on text {start + int(wrong[0])} (from 0) of those that are "
            f"read: the model overflows in {hosted.info.dtype}, or its weights are broken; nothing can be "
            "decided there. Load it in a wider dtype, or mend its weights",
            field="decision",
        )


@contextmanager
def removing(hosted: HostedModel, features: Sequence[FeatureRef]) -> Iterator[None]:
    """Set features to zero at every position of the passes inside; must not span a quantum."""
    touches: dict[Site, list[Touch]] = {}
    by_layer: dict[tuple[str, int], list[int]] = {}
    for feature in features:
        by_layer.setdefault((feature.replacement, feature.layer), []).append(feature.index)
    for (name, layer), indices in by_layer.items():
        for site, touch in _touches(hosted, name, layer, indices).items():
            touches.setdefault(site, []).append(touch)
    joined = {site: _in_turn(each) for site, each in touches.items()}
    with torch.inference_mode(), touching(hosted.architecture, joined):
        yield


def _touches(hosted: HostedModel, name: str, layer: int, indices: Sequence[int]) -> Mapping[Site, Touch]:
    if name == NEURONS:

        def silence(x: Tensor) -> None:
            x[..., list(indices)] = 0

        return {neuron_site(layer): silence}
    return _of_set(hosted, name, layer, indices)


def _of_set(hosted: HostedModel, name: str, layer: int, indices: Sequence[int]) -> Mapping[Site, Touch]:
    info, pending = layer_info(hosted, name, layer), dict[Site, Tensor]()

    def read(x: Tensor) -> None:
        with opened(hosted, name, [layer]) as resident:
            code = resident[layer].encode(x[0].float())
            lost = code.activations[:, list(indices)]  # (n_rows, n_removed)
            for site in info.sites_out:
                decoders = resident[layer].decoders(list(indices), site).to(lost.dtype)
                pending[site] = lost @ decoders * code.scale_out

    def writer(site: Site) -> Touch:
        def write(y: Tensor) -> None:
            y[0] -= pending.pop(site).to(y.dtype)

        return write

    written = {site: writer(site) for site in info.sites_out}
    if info.site_in in written:
        written[info.site_in] = _in_turn([read, written[info.site_in]])
        return written
    return {info.site_in: read, **written}


def _in_turn(touches: Sequence[Touch]) -> Touch:
    def touch(x: Tensor) -> None:
        for each in touches:
            each(x)

    return touch


def _run(hosted: HostedModel, layer: int | None, layout: Layout) -> Tensor:
    """Run a pack and return the stream at the site, `(n_rows, d_model)`."""
    architecture = hosted.architecture
    module = architecture.final_norm.module if layer is None else architecture.blocks[layer].module
    with torch.inference_mode(), ending_at(module) as reached:
        hosted.model(
            input_ids=torch.tensor([layout.ids], device=hosted.model.device),
            position_ids=layout.position[None],
            use_cache=False,
            logits_to_keep=1,
        )
    return reached[0][0]
