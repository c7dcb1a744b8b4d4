"""Collecting an edit's operations into changes of tensors and config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trephine.domain.errors import EditNotExpressibleError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import VERIFIED, Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry
from trephine.engine.weights.drafts import ModuleDraft
from trephine.engine.weights.grafting import Graft
from trephine.engine.weights.linear import Affinity, MapOp, When, later, when
from trephine.engine.weights.mlp import (
    NearConstant,
    attention_bias_field,
    bias_field,
    has_biases,
    padded,
    stored_mlp,
    stored_module,
    width_field,
)
from trephine.engine.weights.operations import NeuronOp
from trephine.engine.weights.placing import post_norm
from trephine.engine.weights.ridge import FittedDelta, module_of
from trephine.engine.weights.tensors import TensorChange, wide_product

Constants = Mapping[Site, NearConstant]
"""Site that a module reads -> the near-constant direction there."""


class Assembly:
    """The changes of one export while they are collected."""

    def __init__(
        self,
        hosted: HostedModel,
        entries: dict[str, TensorEntry],
        *,
        mlp_biases: bool,
        attention_biases: bool = False,
    ) -> None:
        """Start with none.

        Args:
            hosted: The loaded parent.
            entries: The tensors of its files.
            mlp_biases: Whether the exported MLPs have biases; if the parent's have not, the config's field
                is set and every layer is given them.
            attention_biases: The same of attention's projections.
        """
        self.hosted, self.entries = hosted, entries
        self.config: dict[str, Any] = {}
        self.mlp_biases = mlp_biases
        self._drafts: dict[nn.Module, ModuleDraft] = {}
        self._whole: list[TensorChange] = []
        field = bias_field(hosted)
        if mlp_biases and not has_biases(hosted) and field is not None:
            self.config[field] = True
            for layer in range(hosted.architecture.n_layers):
                for draft in self.mlp(layer):
                    draft.needs_bias = True
        field = attention_bias_field(hosted)
        if attention_biases and field is not None:
            self.config[field] = True
            for layer in range(hosted.architecture.n_layers):
                for draft in self.attention(layer):
                    draft.needs_bias = True

    def changes(self) -> tuple[TensorChange, ...]:
        """Return every tensor's change, by name."""
        drafted = [change for draft in self._drafts.values() for change in draft.changes()]
        return tuple(sorted((*drafted, *self._whole), key=lambda change: change.name))

    def draft(self, module: nn.Module, layer: int) -> ModuleDraft:
        """Return the changes of a linear module so far."""
        if module not in self._drafts:
            stored = stored_module(self.hosted, self.entries, module)
            self._drafts[module] = ModuleDraft(stored=stored, layer=layer)
        return self._drafts[module]

    def mlp(self, layer: int) -> list[ModuleDraft]:
        """Return the drafts of gate, up (where there is one) and down."""
        stored = stored_mlp(self.hosted, self.entries, layer)
        modules = [stored.gate, *([] if stored.up is None else [stored.up]), stored.down]
        return [self.draft(each.module, layer) for each in modules]

    def attention(self, layer: int) -> list[ModuleDraft]:
        """Return the drafts of attention's four projections, the output's last."""
        attention: Any = self.hosted.architecture.blocks[layer].attention
        names = ("q_proj", "k_proj", "v_proj")
        modules = [*(getattr(attention.module, name) for name in names), attention.out]
        return [self.draft(module, layer) for module in modules]

    # --- exact -----------------------------------------------------------------------------------

    def write_neurons(self, neurons: Sequence[NeuronOp], constants: Constants) -> None:
        """Scale and shift neurons where the down projection reads them; what changes nothing is left out."""
        for op in neurons:
            draft = self.draft(self.hosted.architecture.blocks[op.layer].mlp.down, op.layer)
            column = draft.stored.matrix[:, op.index].to(torch.float64).cpu()
            if op.factor != 1.0 and bool(column.any()):
                draft.factors[op.index] = op.factor
            if op.shift and bool(column.any()):
                self._shift(draft, Site(kind=SiteKind.NEURONS, layer=op.layer), op.shift * column, constants)

    def write_maps(self, affinities: Mapping[Site, Affinity], constants: Constants) -> None:
        """Write affine maps: of what a module reads first, then of what it writes."""
        for site in sorted(affinities, key=lambda site: site.kind is not SiteKind.ATTN_Z):
            affinity = affinities[site]
            if site.kind is SiteKind.EMBED:
                self._map_embedding(affinity)
            elif site.kind is SiteKind.ATTN_Z:
                self._map_input(site, affinity, constants)
            else:
                self._map_output(site, affinity, constants)

    def _map_input(self, site: Site, affinity: Affinity, constants: Constants) -> None:
        draft = self.draft(self.hosted.architecture.blocks[site.layer].attention.out, site.layer)
        matrix = draft.current()
        draft.scale(affinity.gain)
        if affinity.left.shape[1]:
            draft.add(affinity.gain * (matrix @ affinity.left), affinity.right)
        if bool(affinity.offset.any()):
            self._shift(draft, site, matrix @ affinity.offset, constants)

    def _map_output(self, site: Site, affinity: Affinity, constants: Constants) -> None:
        norm = post_norm(self.hosted, site)
        if norm is not None:
            self._scale_norm(norm, site.layer, affinity.gain)
            return
        module, reads = module_of(self.hosted, site)
        draft = self.draft(module, site.layer)
        matrix = draft.current()
        draft.scale(affinity.gain)
        if affinity.left.shape[1]:
            draft.add(affinity.gain * affinity.left, affinity.right @ matrix)
        self._map_bias(draft, affinity)
        if bool(affinity.offset.any()):
            self._shift(draft, reads, affinity.offset, constants)

    def _scale_norm(self, norm: Norm, layer: int, factor: float) -> None:
        """Scale all that a norm answers, by its gain, of which files may hold what is above 1 alone."""
        stored = stored_module(self.hosted, self.entries, norm.module).weight
        weight: Any = norm.module.weight
        gain = weight.detach().to(torch.float64).cpu() + VERIFIED[self.hosted.architecture.name].gain_offset
        self._whole.append(
            TensorChange(
                name=stored.name,
                file=stored.file,
                dtype=stored.dtype,
                layer=layer,
                entry=stored,
                added=(factor - 1.0) * gain,
            )
        )

    def _map_bias(self, draft: ModuleDraft, affinity: Affinity) -> None:
        """Map the parent's bias, and what was added to it, as the matrix is mapped."""
        own: Any = getattr(draft.stored.module, "bias", None)
        before = draft.bias
        total = None if own is None else own.detach().to(torch.float64).cpu()
        if before is not None:
            total = before if total is None else total + before
        if total is not None:
            draft.bias = affinity(total) - (total - before if before is not None else total)

    def _shift(self, draft: ModuleDraft, reads: Site, amount: Tensor, constants: Constants) -> None:
        """Add a constant to what a module writes: by its bias, or along a near-constant input."""
        if draft.stored.bias is not None or draft.needs_bias:
            draft.shift(amount)
            return
        draft.add(amount[:, None], constants[reads].direction[None])

    def _map_embedding(self, affinity: Affinity) -> None:
        """Map every row of the embeddings, positions included; a tied unembedding keeps its own copy."""
        if bool(affinity.offset.any()):
            raise EditNotExpressibleError(
                "a constant at the embeddings is written by no matrix of its own; "
                "add it at layer 0's attn_out or mlp_out",
                field="interventions",
            )
        hosted = self.hosted
        base: Any = hosted.model.base_model
        positions = getattr(base, "wpe", None)
        for module in (hosted.architecture.embedding, *([] if positions is None else [positions])):
            stored = stored_module(hosted, self.entries, module)
            low_rank = None
            if affinity.left.shape[1]:
                moved = wide_product(stored.matrix, affinity.right.T)
                low_rank = (affinity.gain * moved, affinity.left.T.contiguous())
            self._whole.append(
                TensorChange(
                    name=stored.weight.name,
                    file=stored.weight.file,
                    dtype=stored.weight.dtype,
                    layer=0,
                    entry=stored.weight,
                    gain=affinity.gain,
                    low_rank=low_rank,
                )
            )
        if hosted.info.tied_embeddings:
            self._untie()

    def _untie(self) -> None:
        """Give the unembedding the parent's matrix as a tensor of its own, and say so in the config."""
        model: Any = self.hosted.model
        head = self.hosted.architecture.unembedding
        name = next(n for n, m in model.named_modules() if m is head) + ".weight"
        source = stored_module(self.hosted, self.entries, self.hosted.architecture.embedding).weight
        self.config["tie_word_embeddings"] = False
        if name not in self.entries:
            self._whole.append(
                TensorChange(
                    name=name, file=source.file, dtype=source.dtype, layer=0, entry=None, copied_from=source
                )
            )

    # --- grafts and fits -------------------------------------------------------------------------

    def write_grafts(self, grafts: Sequence[Graft], maps: Sequence[MapOp], constants: Constants) -> None:
        """Append the units of every layer, and zeros in all others: layers share one width."""
        units: dict[int, list[tuple[Any, Tensor]]] = {}
        for each in grafts:
            place = Site(kind=SiteKind.MLP_OUT, layer=each.layer)
            after = self._later(place, when(place, each.op.arrives), maps)
            units.setdefault(each.layer, []).extend((u, after(u.down)) for u in each.fit.units)
            if each.constant:
                draft = self.mlp(each.layer)[-1]
                reads = Site(kind=SiteKind.NEURONS, layer=each.layer)
                self._shift(draft, reads, after(each.constant * each.direction), constants)
        most = max(map(len, units.values()), default=0)
        if most == 0:
            return
        width = self.hosted.architecture.d_mlp
        count = padded(most, width)
        self.config[width_field(self.hosted)] = width + count
        for layer in range(self.hosted.architecture.n_layers):
            self._append(layer, count, units.get(layer, []))

    def _append(self, layer: int, count: int, units: Sequence[tuple[Any, Tensor]]) -> None:
        gate, *between, down = self.mlp(layer)
        if not units:
            for draft in (gate, *between):
                draft.new_outputs = (count, None, None)
            down.new_inputs = (count, None)
            return
        gates = torch.stack([unit.gate for unit, _ in units])
        gate_biases = torch.tensor([unit.gate_bias for unit, _ in units], dtype=torch.float64)
        gate.new_outputs = (count, gates, gate_biases)
        for up in between:
            rows = None if units[0][0].up is None else torch.stack([unit.up for unit, _ in units])
            biases = torch.tensor([unit.up_bias for unit, _ in units], dtype=torch.float64)
            up.new_outputs = (count, rows, biases)
        down.new_inputs = (count, torch.stack([column for _, column in units]))

    def write_deltas(self, deltas: Sequence[FittedDelta], maps: Sequence[MapOp]) -> None:
        """Add fitted deltas to the modules that they were fitted on; those that are zero change no tensor."""
        for delta in deltas:
            left = delta.left
            if delta.arrivals:
                columns = zip(left.T, delta.arrivals, strict=True)
                left = torch.stack([self._later(delta.place, m, maps)(c) for c, m in columns], dim=1)
            if bool(left.any()) and bool(delta.right.any()):
                self.draft(delta.module, delta.place.layer).add(left, delta.right)

    def _later(self, site: Site, moment: When, maps: Sequence[MapOp]) -> Affinity:
        """Return what maps of the same output that a forward pass reaches later do to a column."""
        return later(self.hosted.architecture.d_model, maps, site, moment)
