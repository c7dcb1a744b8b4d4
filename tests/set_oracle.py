"""An oracle for graphs over replacement sets: hooks on the Hugging Face forward pass, nothing else.

Held: attention patterns, the scale of every norm, every MLP's own output, and what a dictionary on
attention's output reconstructs. Live: skip paths. A source is moved at every site that it writes; what a
target then reads is compared with what it read before. Nothing here comes from the attribution modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.oracles import FrozenOracle
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.attention import PatternTape, pattern_tape
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import touching

Move = tuple[Site, int, Tensor]
"""Add a vector at a site and position."""


class SetOracle(FrozenOracle):
    """The frozen model on one prompt, with moves at any site."""

    def __init__(
        self,
        hosted: HostedModel,
        ids: Sequence[int],
        *,
        skips: Mapping[int, Tensor] | None = None,
        held: Sequence[Site] = (),
    ) -> None:
        """Run the prompt once.

        Args:
            hosted: The model.
            ids: The prompt.
            skips: Skip matrices `(d_out, d_in)` by layer.
            held: Sites that a dictionary reconstructs, so that nothing flows through them.
        """
        self.skips, self.held = dict(skips or {}), tuple(held)
        self.clean_sites: dict[Site, Tensor] = {}
        super().__init__(hosted.model, hosted.architecture, ids)
        wanted = [Site(kind=SiteKind.MLP_IN, layer=layer) for layer in self.skips]
        for site in (*wanted, *self.held):
            self.clean_sites[site] = self.read([()], site)[0]

    def read(self, rows: Sequence[Sequence[Move]], site: Site | None) -> Tensor:
        """Return what is read at a site, or of the final norm's output, `(rows, n_pos, width)`."""
        seen: dict[Site | None, Tensor] = {}
        inputs: dict[int, Tensor] = {}
        sites = {move[0] for row in rows for move in row} | set(self.held) | ({site} if site else set())
        for layer in self.skips:
            sites |= {Site(kind=kind, layer=layer) for kind in (SiteKind.MLP_IN, SiteKind.MLP_OUT)}
        touches = {at: partial(self._touch, at, rows, site, seen, inputs) for at in sites}
        # Frozen norms first: hooks run in order, and moves behind a post-norm must not be overwritten.
        handles = [n.module.register_forward_hook(self._frozen_norm(n)) for n in self._norms()]
        try:
            with touching(self.architecture, touches):
                found = self._run(len(rows))
        finally:
            for handle in handles:
                handle.remove()
        return found if site is None else seen[site]

    def _touch(
        self,
        at: Site,
        rows: Sequence[Sequence[Move]],
        wanted: Site | None,
        seen: dict[Site | None, Tensor],
        inputs: dict[int, Tensor],
        x: Tensor,
    ) -> None:
        if at == wanted:
            seen[at] = x.clone()
        if at in self.held and at in self.clean_sites:
            x.copy_(self.clean_sites[at].expand_as(x))
        if at.kind is SiteKind.MLP_IN and at.layer in self.skips:
            inputs[at.layer] = x.clone()
        clean = self.clean_sites.get(Site(kind=SiteKind.MLP_IN, layer=at.layer))
        if at.kind is SiteKind.MLP_OUT and at.layer in self.skips and clean is not None:
            x += (inputs[at.layer] - clean) @ self.skips[at.layer].T.to(x.dtype)
        for row, moves in enumerate(rows):
            for place, position, vector in moves:
                if place == at:
                    x[row, position] += vector.to(x.dtype)

    def _run(self, n_rows: int) -> Tensor:
        final: list[Tensor] = []

        def keep(_module: Any, _args: Any, out: Tensor) -> None:
            final.append(out)

        handle = self.architecture.final_norm.module.register_forward_hook(keep)
        for block in self.architecture.blocks:
            block.mlp.module.forward = self._held_mlp(block.layer, n_rows)
        try:
            with torch.no_grad(), pattern_tape(PatternTape(imposed=self.patterns)):
                self.model(input_ids=self.ids.expand(n_rows, -1), use_cache=False, logits_to_keep=1)
        finally:
            for block in self.architecture.blocks:
                block.mlp.module.__dict__.pop("forward", None)
            handle.remove()
        return final[0]

    def _held_mlp(self, layer: int, n_rows: int) -> Callable[[Tensor], Tensor]:
        def forward(_hidden: Tensor) -> Tensor:
            return self.mlp_out[layer].expand(n_rows, -1, -1).clone()

        return forward
