"""How truly a spliced model answers to changes: both streams are changed alike, and what follows is compared.

A loss on what a spliced run holds says little about what it would hold if a feature were taken away, and
buys the one with the other. This one is of differences between runs: behind one layer the residual stream is
changed at some positions, by differences between two other positions' activations, in the plain run and in
the spliced one. It is Sobolev training (Czarnecki et al. 2017, arXiv:1706.04859) with finite differences in
place of derivatives, since what is to be true are changes of that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import resumed
from trephine.engine.fitting.reconstruction import SplicedPass, plain_logits
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import touching

POSITIONS = 4
"""One in so many positions is changed."""
SIZES = (0.1, 0.5)
"""What differences between two activations are multiplied by: from about what one feature writes upwards."""

Streams = Mapping[int, Tensor]
"""The residual stream `(rows, n_pos, d_model)` behind layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One of the stream behind a layer, for the first rows of a batch."""

    layer: int
    generator: torch.Generator
    """Of positions, directions and sizes."""
    rows: int
    """So many contexts are changed."""

    def error(
        self, hosted: HostedModel, ids: Tensor, plain: Streams, spliced: Streams, run: SplicedPass
    ) -> Tensor:
        """Return NMSE of what the change does behind every later layer: squared error over squared change.

        Args:
            hosted: The model.
            ids: The batch `(n, n_pos)`.
            plain: The plain run's streams, from the changed layer on.
            spliced: The spliced run's, with their graph.
            run: The spliced run.
        """
        ids, later = ids[: self.rows], range(self.layer + 1, hosted.info.n_layers)
        stream = plain[self.layer][: self.rows]
        delta = drawn(stream, self.generator)
        with torch.no_grad(), _changed(hosted, self.layer, stream + delta) as true:
            plain_logits(hosted, ids, last_only=True)
        # With its graph, as the run that is subtracted has it: below the change gradients cancel.
        with _changed(hosted, self.layer, spliced[self.layer][: self.rows] + delta) as answer:
            run.above(self.layer, self.rows).run(hosted, ids, last_only=True)
        ratios = []
        for layer in later:
            wanted = (true[layer] - plain[layer][: self.rows]).float()
            given = (answer[layer] - spliced[layer][: self.rows]).float()
            ratios.append((given - wanted).square().sum() / wanted.square().sum())
        return torch.stack(ratios).mean()


def drawn(stream: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a change of a stream `(rows, n_pos, d_model)`: at position 0, an attention sink, there is none."""
    rows, n_pos, _ = stream.shape
    others = stream[:, 1:].flatten(0, 1)
    count = len(others)
    first = torch.randint(count, (count,), generator=generator)
    second = (first + torch.randint(1, count, (count,), generator=generator)) % count  # never the same one
    low, high = SIZES
    size = low + (high - low) * torch.rand(count, 1, generator=generator)
    order = torch.rand(rows, n_pos - 1, generator=generator).argsort(-1)
    size = size * (order < -(-(n_pos - 1) // POSITIONS)).view(-1, 1)
    device = stream.device
    change = (others[first.to(device)] - others[second.to(device)]) * size.to(stream)
    return torch.cat([torch.zeros_like(stream[:, :1]), change.view(rows, n_pos - 1, -1)], dim=1)


@contextmanager
def streams_behind(hosted: HostedModel, layers: range) -> Iterator[dict[int, Tensor]]:
    """Collect the stream behind layers from the pass inside, with its graph where there is one."""
    streams: dict[int, Tensor] = {}
    sites = {layer: Site(kind=SiteKind.RESID_POST, layer=layer) for layer in layers}
    with touching(hosted.architecture, {site: partial(_keep, streams, n) for n, site in sites.items()}):
        yield streams


def _keep(streams: dict[int, Tensor], layer: int, x: Tensor) -> None:
    streams[layer] = x


@contextmanager
def _changed(hosted: HostedModel, layer: int, stream: Tensor) -> Iterator[dict[int, Tensor]]:
    """Let the pass inside go on from a stream behind a layer; what lies below does not run."""
    with (
        resumed(hosted.architecture, layer + 1, stream),
        streams_behind(hosted, range(layer + 1, hosted.info.n_layers)) as streams,
    ):
        yield streams
