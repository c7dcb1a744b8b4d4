"""Running a prompt with masks over the features of whole layers, many rows at once.

A mask says per layer, position and feature how much of the activation stays, 1 all of it and 0 none; what
goes is replaced by a substitute: a' = m a + (1 - m) s, with a read off the current, already changed input.
Neurons are changed where the down projection reads them. A set's features are encoded at the layer's input
and the difference is written where it decodes, as in `trephine.engine.replacements.writing`: with the error
term live the true output moves by (f' - f) W_dec; frozen and drop put the reconstruction in its place, with
the clean run's error or none. Patterns, norms and everything else follow. A mask of ones changes no bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS, LayerRef, Site
from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.attribution.places import clean_value
from trephine.engine.attribution.targets import Explained
from trephine.engine.graphs.open_layers import info_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.sites import Touch, touching
from trephine.engine.replacements.layer import Code, ReplacementLayer
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.resumption import CleanRun, clean_run, resumed, stream_bytes

Mask = Mapping[LayerRef, Tensor]
"""By layer of a set `(n_pos, width)`, 1 keeps; layers that are not named stay as they are."""
Substitutes = Mapping[LayerRef, Tensor]
"""By layer of a set `(n_pos, width)` or `(width,)`: what ablated activations become."""

BATCH_TOKENS = 256
"""Tokens of one forward pass, which is a quantum."""
_CLEAN_BYTES = 1 << 28


@dataclass(slots=True)
class Tape:
    """What a pass met on its way: codes of the masked layers, sites that were read, those of targets."""

    codes: dict[LayerRef, Code] = field(default_factory=dict)
    values: dict[Site, Tensor] = field(default_factory=dict)
    gauged: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MaskedPrompt:
    """One prompt of one model, and the features that masks are about."""

    hosted: HostedModel
    ids: tuple[int, ...]
    layers: tuple[LayerRef, ...]
    """Layers of sets whose features can be masked, from the bottom up."""
    operators: FrozenOperators
    """The clean run."""
    explained: Explained
    """What is measured."""
    error_term: ErrorTerm = ErrorTerm.LIVE

    @cached_property
    def _clean(self) -> CleanRun | None:
        if stream_bytes(self.hosted.architecture, len(self.ids)) > _CLEAN_BYTES:
            return None
        return clean_run(self.hosted.model, self.hosted.architecture, self.ids)

    @property
    def batch_rows(self) -> int:
        """Rows of one pass."""
        return max(1, BATCH_TOKENS // len(self.ids))

    @property
    def baseline(self) -> float:
        """What is explained, on the plain prompt."""
        return self.explained.baseline

    @property
    def is_of_neurons(self) -> bool:
        """True if there are no features but neurons: nothing has an error term."""
        return all(ref.replacement == NEURONS for ref in self.layers)

    @property
    def drops_errors(self) -> bool:
        """True if what sets do not reconstruct is left out, also where nothing is ablated."""
        return self.error_term is ErrorTerm.DROP and not self.is_of_neurons

    @cached_property
    def unablated(self) -> float:
        """What is explained where nothing is ablated: the baseline, unless the error term is not live."""
        if self.error_term is ErrorTerm.LIVE or self.is_of_neurons:
            return self.baseline
        return float(self.values([{}])[0][0])

    def width(self, ref: LayerRef) -> int:
        """Features of a layer."""
        return info_of(self.hosted, ref).d_sae

    def site_in(self, ref: LayerRef) -> Site:
        """Where a layer's features are read."""
        if ref.replacement == NEURONS:
            return neuron_site(ref.layer)
        return info_of(self.hosted, ref).site_in

    def ones(self) -> dict[LayerRef, Tensor]:
        """A mask that keeps everything."""
        device = self.operators.device
        return {x: torch.ones(len(self.ids), self.width(x), device=device) for x in self.layers}

    def values(
        self, masks: Sequence[Mask], substitutes: Substitutes | None = None, *, reads: Sequence[Site] = ()
    ) -> tuple[Tensor, Tape]:
        """Run the prompt once per mask, as one batch.

        Args:
            masks: At least one.
            substitutes: What ablated activations become; None: zero.
            reads: Sites that are wanted, `(rows, n_pos, width)` each.

        Returns:
            What is explained `(rows,)`, on the CPU; and what was met.
        """
        tape = Tape()
        with torch.inference_mode():
            touches = self._touches(masks, substitutes, tape, reads)
            first = min((site.layer for site in touches), default=0)
            batch = torch.tensor([self.ids] * len(masks), device=self.operators.device)
            model: Any = self.hosted.model
            with (
                resumed(self.hosted.architecture, self._clean, first),
                touching(self.hosted.architecture, touches),
            ):
                output = model(input_ids=batch, use_cache=False, logits_to_keep=len(self.ids) - self._first)
            return self._measured(output.logits, tape), tape

    @property
    def _first(self) -> int:
        """The first position whose logits are read; the last, if none is."""
        gauges = (target.gauge for target in self.explained.targets)
        return min((g.position for g in gauges if g.site is None), default=len(self.ids) - 1)

    def _measured(self, logits: Tensor, tape: Tape) -> Tensor:
        """Measure rows of logits `(rows, n_kept, d_vocab)` and of sites that were read."""
        total = torch.zeros(len(logits), dtype=torch.float64)
        for target in self.explained.targets:
            gauge, share = target.gauge, target.about.share
            for row in range(len(logits)):
                values = (
                    logits[row, gauge.position - self._first]
                    if gauge.site is None
                    else tape.gauged[gauge.site][row]
                )
                total[row] += share * float(gauge.measure(values))
        return total

    def captured(self, mask: Mask, substitutes: Substitutes | None) -> tuple[FrozenOperators, Tape]:
        """Run the prompt once under a mask and keep what adjoints at that state need."""
        tape = Tape()
        with torch.inference_mode():
            touches = self._touches([mask], substitutes, tape, ())
            with touching(self.hosted.architecture, touches):
                operators = capture(self.hosted.model, self.hosted.architecture, self.ids)
        return operators, tape

    # --- hooks ---------------------------------------------------------------------------------------

    def _touches(
        self, masks: Sequence[Mask], substitutes: Substitutes | None, tape: Tape, reads: Sequence[Site]
    ) -> dict[Site, Touch]:
        layers = {ref for mask in masks for ref in mask}
        if self.error_term is not ErrorTerm.LIVE:  # the reconstruction replaces every layer, masked or not
            layers |= {ref for ref in self.layers if ref.replacement != NEURONS}
        # Features and directions are read before anything is changed where they stand, scores after it.
        gauged = {
            (target.gauge.site, target.gauge.reads_changed)
            for target in self.explained.targets
            if target.gauge.site is not None
        }
        acts: dict[Site, list[Touch]] = {
            site: [partial(_keep, tape.gauged, site)] for site, changed in gauged if not changed
        }
        for ref in sorted(layers):
            kept = torch.stack([mask.get(ref, self._whole(ref)) for mask in masks])
            substitute = None if substitutes is None else substitutes[ref]
            for site, act in self._layer_touches(ref, kept, substitute, tape).items():
                acts.setdefault(site, []).append(act)
        for site in (site for site, changed in gauged if changed):
            acts.setdefault(site, []).append(partial(_keep, tape.gauged, site))
        for site in reads:
            acts.setdefault(site, []).append(partial(_keep, tape.values, site))
        return {site: partial(_each, of_site) for site, of_site in acts.items()}

    def _whole(self, ref: LayerRef) -> Tensor:
        return torch.ones(len(self.ids), self.width(ref), device=self.operators.device)

    def _layer_touches(
        self, ref: LayerRef, kept: Tensor, substitute: Tensor | None, tape: Tape
    ) -> dict[Site, Touch]:
        if ref.replacement == NEURONS:
            return {neuron_site(ref.layer): partial(_mix_in_place, kept, substitute)}
        info = info_of(self.hosted, ref)
        arriving: dict[Site, Tensor] = {}
        touches: dict[Site, Touch] = {
            info.site_in: partial(self._read, ref, kept, substitute, arriving, tape)
        }
        for site in info.sites_out:
            write = partial(self._write, site, arriving)
            before = touches.get(site)  # an SAE writes where it reads
            touches[site] = write if before is None else partial(_each, [before, write])
        return touches

    def _read(
        self,
        ref: LayerRef,
        kept: Tensor,
        substitute: Tensor | None,
        arriving: dict[Site, Tensor],
        tape: Tape,
        x: Tensor,
    ) -> None:
        with opened(self.hosted, ref.replacement, [ref.layer]) as resident:
            found = resident[ref.layer]
            code = found.encode(x.to(torch.promote_types(x.dtype, torch.float32)))
            changed = replace(code, activations=_mixed(code.activations, kept, substitute))
            tape.codes[ref] = code
            if self.error_term is ErrorTerm.LIVE:
                difference = changed.activations - code.activations
                for site in found.info.sites_out:
                    decoders = found.decoders(range(found.info.d_sae), site).to(difference.dtype)
                    arriving[site] = (difference @ decoders) * code.scale_out
                return
            after = found.decode(changed)
            (site,) = found.info.sites_out
            skip = found.skip(x, changed)
            arriving[site] = after[site] if skip is None else after[site] + skip
            if self.error_term is ErrorTerm.FROZEN:
                arriving[site] = arriving[site] + self._clean_error(found, site)

    def _clean_error(self, layer: ReplacementLayer, site: Site) -> Tensor:
        clean = layer.reconstruct(clean_value(self.operators, layer.info.site_in))[site]
        return clean_value(self.operators, site) - clean

    def _write(self, site: Site, arriving: dict[Site, Tensor], x: Tensor) -> None:
        value = arriving.pop(site)
        if self.error_term is ErrorTerm.LIVE:
            x.copy_(x + value)
        else:
            x[:, 1:] = value[:, 1:].to(x.dtype)  # position 0 is an attention sink: it stays true


def _mixed(x: Tensor, kept: Tensor, substitute: Tensor | None) -> Tensor:
    mixed = kept * x
    if substitute is not None:
        mixed = mixed + (1 - kept) * substitute
    return torch.where(kept == 1, x, mixed)


def _mix_in_place(kept: Tensor, substitute: Tensor | None, x: Tensor) -> None:
    x.copy_(_mixed(x, kept, substitute))


def _keep(values: dict[Site, Tensor], site: Site, x: Tensor) -> None:
    values[site] = x.clone()


def _each(acts: Sequence[Touch], x: Tensor) -> None:
    for act in acts:
        act(x)
