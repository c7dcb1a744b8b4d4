"""Running a model on reconstructions: what a dictionary makes of the current input, in place of the truth.

A splice reads every covered layer's input site as the pass reaches it, and writes its output sites when the
pass reaches those; cross-layer transcoders add up on the way. Position 0 keeps its true activation: it is an
attention sink of a hundred times the others' norm, no dictionary was trained on it, and it sees nothing but
itself, so that it stays exactly as it is in the plain run. Other positions that a set was not trained on keep
the plain run's activations too, as in SAELens' evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import Architecture, Block
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import Touch, touching
from trephine.engine.replacements.layer import Code, ReplacementLayer
from trephine.engine.replacements.positions import LATER, Rows, aside
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.forward import Pass, forward, left_padded

_OF_AN_MLP = (SiteKind.NEURONS, SiteKind.MLP_OUT)
"""Sites that an MLP must run for."""
Values = Mapping[Site, Tensor]
"""`(n_pos, width)` by site, of one context."""


OnCode = Callable[[ReplacementLayerInfo, Code], None]


class Opener(Protocol):
    """Holds layers resident inside a block."""

    def __call__(self, layers: Sequence[int]) -> AbstractContextManager[Mapping[int, ReplacementLayer]]:
        """Open some layers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSource:
    """Replacement layers to splice, wherever their weights are."""

    infos: tuple[ReplacementLayerInfo, ...]
    """Ascending by layer."""
    open: Opener

    @property
    def sites_in(self) -> tuple[Site, ...]:
        """What is read, each site once."""
        return tuple(dict.fromkeys(info.site_in for info in self.infos))

    @property
    def sites_out(self) -> tuple[Site, ...]:
        """What is written, each site once."""
        return tuple(dict.fromkeys(site for info in self.infos for site in info.sites_out))

    @property
    def sites(self) -> tuple[Site, ...]:
        """What a measurement needs of the plain run."""
        return tuple(dict.fromkeys((*self.sites_in, *self.sites_out)))


def loaded_source(hosted: HostedModel, name: str, layers: Sequence[int]) -> LayerSource:
    """Return layers of a loaded set, or of the model's own neurons.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If it does not cover a layer.
    """
    infos = tuple(layer_info(hosted, name, layer) for layer in sorted(layers))
    return LayerSource(infos=infos, open=partial(opened, hosted, name))


def encoded(source: LayerSource, values: Values) -> Iterator[tuple[ReplacementLayerInfo, Code, Values]]:
    """Yield every layer with its code and what it writes, skip path included, on a plain run."""
    for info in source.infos:
        with source.open([info.layer]) as layers:
            code, written = written_by(layers[info.layer], values[info.site_in])
            yield info, code, written


def reconstructions(source: LayerSource, values: Values) -> dict[Site, Tensor]:
    """Return what all layers together write at every output site, on a plain run's activations."""
    sums: dict[Site, Tensor] = {}
    for _, _, written in encoded(source, values):
        _add(sums, written)
    return sums


def written_by(layer: ReplacementLayer, x: Tensor) -> tuple[Code, dict[Site, Tensor]]:
    """Encode `x (..., d_in)`; return the code and all that the layer writes, skip path included."""
    code = layer.encode(x)
    written = dict(layer.decode(code))
    skipped = layer.skip(x, code)
    if skipped is not None:
        site = layer.info.sites_out[0]
        written[site] = written[site] + skipped
    return code, written


def _add(sums: dict[Site, Tensor], written: Values) -> None:
    for site, value in written.items():
        sums[site] = sums[site] + value if site in sums else value


@dataclass(frozen=True, kw_only=True)
class Splice:
    """The touches that run one forward pass of one context on reconstructions.

    Make a fresh one for every pass: contributions to later layers wait in it.
    """

    source: LayerSource
    errors: Values | None = None
    """Frozen errors of a plain run, added at every position, 0 included (law 2)."""
    first: Values = field(default_factory=dict)
    """Plain activations, which positions that are not spliced keep: their modules may not run."""
    rows: Rows = field(default_factory=lambda: LATER)
    """Positions that are spliced."""
    on_code: OnCode | None = None
    """Told every layer's code `(1, n_pos, d_sae)`, all positions included."""
    _pending: dict[Site, Tensor] = field(default_factory=dict)

    def touches(self) -> dict[Site, Touch]:
        """Return one function per site that is read or written."""
        return {site: partial(self._touch, site) for site in self.source.sites}

    def _touch(self, site: Site, x: Tensor) -> None:
        readers = [info for info in self.source.infos if info.site_in == site]
        for info in readers:
            if site in info.sites_out:  # an SAE reads the true activation, whoever else reads what is written
                self._read(info, x)
        if site in self._pending:
            self._put(site, x)
        for info in readers:
            if site not in info.sites_out:
                self._read(info, x)

    def _read(self, info: ReplacementLayerInfo, x: Tensor) -> None:
        with self.source.open([info.layer]) as layers:
            code, written = written_by(layers[info.layer], x)
        _add(self._pending, written)
        if self.on_code is not None:
            self.on_code(info, code)

    def _put(self, site: Site, x: Tensor) -> None:
        value = self._pending.pop(site)
        if self.errors is not None:
            x.copy_(value + self.errors[site])
            return
        _write(x, value, self.first.get(site), self.rows)


def _write(x: Tensor, value: Tensor, plain: Tensor | None, rows: Rows) -> None:
    """Write what broadcasts to `x (copies, n_pos, width)` at some positions, `plain` at the others."""
    x[:, rows] = value.expand(x.shape)[:, rows].to(x.dtype)
    if plain is not None:
        others = aside(rows, x.shape[1])
        x[:, others] = plain[others].to(x.dtype)


def constants(values: Values, first: Values | None = None, rows: Rows = LATER) -> dict[Site, Touch]:
    """Return touches that write given values `(width,)`, `(n_pos, width)` or `(copies, n_pos, width)`.

    Args:
        values: What is written.
        first: Plain activations for the other positions, where the module itself does not run.
        rows: Positions that are written.
    """

    def touch(site: Site, x: Tensor) -> None:
        _write(x, values[site], None if first is None else first[site], rows)

    return {site: partial(touch, site) for site in values}


@contextmanager
def silenced(
    architecture: Architecture, written: Sequence[Site], *, read: Sequence[Site] = ()
) -> Iterator[None]:
    """Let MLPs whose outputs are all written not run at all; their modules answer with zeros.

    An MLP runs all the same where something inside it or its own output is read.
    """
    needed = {site.layer for site in read if site.kind in _OF_AN_MLP}
    chosen = [site.layer for site in written if site.kind is SiteKind.MLP_OUT and site.layer not in needed]
    with ExitStack() as stack:
        for layer in chosen:
            stack.enter_context(_standing_in(architecture.blocks[layer].mlp.module, torch.zeros_like))
        yield


@contextmanager
def resumed(
    architecture: Architecture, layer: int, stream: Tensor, *, stop: int | None = None
) -> Iterator[None]:
    """Start passes at a layer, from its `resid_pre` `(n_pos, d_model)`: the blocks below do not run.

    Args:
        architecture: The model's modules.
        layer: The first block that runs.
        stream: What it reads.
        stop: The first block that does not run any more; None runs to the end. Logits are then no logits.
    """
    site = Site(kind=SiteKind.RESID_PRE, layer=layer)
    beyond = () if stop is None else architecture.blocks[stop:]
    with (
        standing_aside((*architecture.blocks[:layer], *beyond)),
        touching(architecture, {site: lambda x: _overwrite(x, stream)}),
    ):
        yield


@contextmanager
def standing_aside(blocks: Sequence[Block]) -> Iterator[None]:
    """Let blocks hand on what they are given; their hooks run."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_standing_in(block.module, _unchanged))
        yield


def _overwrite(x: Tensor, value: Tensor) -> None:
    x.copy_(value.expand(x.shape))


def _unchanged(x: Tensor) -> Tensor:
    return x


@contextmanager
def _standing_in(module: nn.Module, answer: Any) -> Iterator[None]:
    """Answer for a module inside the block; its hooks run, and it is itself again afterwards (law 6)."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return answer(args[0] if args else kwargs["hidden_states"])

    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def run_context(
    hosted: HostedModel,
    ids: Sequence[int],
    touches: Mapping[Site, Touch],
    *,
    reads: Sequence[Site] = (),
    keep_last: int | None = None,
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Run one context, unpadded, under touches.

    Returns:
        Logits `(n_pos or keep_last, d_vocab)` in float32, and what was read, `(n_pos, width)` by site, after
        the touches.
    """
    request = Pass(reads=reads, keep_last=keep_last)
    with touching(hosted.architecture, touches):
        logits = forward(hosted, left_padded(hosted, [(ids, len(ids))]), request)
    return logits[0].float(), {site: value[0] for site, value in request.values.items()}


def run_copies(hosted: HostedModel, ids: Sequence[int], copies: int, touches: Mapping[Site, Touch]) -> Tensor:
    """Run a context several times in one pass, in rows that touches write differently.

    Returns:
        Logits `(copies, n_pos, d_vocab)` in float32.
    """
    with touching(hosted.architecture, touches):
        return forward(hosted, left_padded(hosted, [(ids, len(ids))] * copies), Pass()).float()


def run_spliced(
    hosted: HostedModel,
    ids: Sequence[int],
    source: LayerSource,
    plain: Values,
    *,
    errors: Values | None = None,
    rows: Rows = LATER,
) -> Tensor:
    """Run one context with every layer of the source spliced in; return its logits `(n_pos, d_vocab)`.

    MLPs that are wholly replaced do not run.

    Args:
        hosted: The model.
        ids: The context.
        source: What is spliced.
        plain: The plain run's activations at the source's output sites.
        errors: Frozen errors to inject, at every position.
        rows: Positions that are spliced, where no errors are injected.
    """
    splice = Splice(source=source, errors=errors, first=plain, rows=rows)
    return _run(hosted, ids, splice, ())[0]


def watch_spliced(
    hosted: HostedModel,
    ids: Sequence[int],
    source: LayerSource,
    plain: Values,
    on_code: OnCode,
    *,
    rows: Rows = LATER,
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Run as `run_spliced` does, and see what the layers do on what the ones below have written.

    Returns:
        Logits `(n_pos, d_vocab)`, and what was written, `(n_pos, width)` by output site.
    """
    splice = Splice(source=source, first=plain, rows=rows, on_code=on_code)
    return _run(hosted, ids, splice, source.sites_out)


def _run(
    hosted: HostedModel, ids: Sequence[int], splice: Splice, reads: Sequence[Site]
) -> tuple[Tensor, dict[Site, Tensor]]:
    with silenced(hosted.architecture, splice.source.sites_out, read=splice.source.sites_in):
        return run_context(hosted, ids, splice.touches(), reads=reads)
