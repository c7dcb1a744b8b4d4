"""SAELens' trainer for one SAE or transcoder, fed from outside. Only the fitting process imports this.

SAELens 6 has no training class for transcoders; `TrainingTranscoder` is one: BatchTopK, and the auxiliary
loss for dead features on the *output* that is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.transcoder import JumpReLUSkipTranscoderConfig, JumpReLUTranscoderConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor, nn

from trephine.domain.fitting import FitPoint, FitRecipe
from trephine.domain.replacements import LayerKind
from trephine.engine.fitting.activations import Activations, Plan
from trephine.engine.fitting.checkpoints import State, prefixed, under
from trephine.engine.fitting.dictionary import Dictionary, batch_topk, strongest
from trephine.engine.fitting.optimiser import Rate, optimiser_tensors, restore_optimiser
from trephine.engine.fitting.trainee import Means, load_weights


class TrainingSae(BatchTopKTrainingSAE):  # type: ignore[misc]
    """SAELens' BatchTopK SAE, quicker: it selects by a threshold, and looks at dead features alone."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        """Keep the k times batch size largest."""
        k = self.cfg.k
        return lambda pre: batch_topk(pre, k)

    def calculate_topk_aux_loss(
        self, sae_in: Tensor, sae_out: Tensor, hidden_pre: Tensor, dead_neuron_mask: Tensor | None
    ) -> Tensor:
        """Let the strongest dead features reconstruct what is left over, as SAELens does with all at hand."""
        if dead_neuron_mask is None or not bool(dead_neuron_mask.any()):
            return sae_out.new_zeros(())
        dead, wanted = dead_neuron_mask.nonzero().flatten(), sae_out.shape[-1] // 2
        active = strongest(hidden_pre[..., dead], wanted)
        rows = self.W_dec[dead]
        written = active @ (rows / rows.norm(dim=-1, keepdim=True))
        loss = (written - (sae_in - sae_out).detach()).square().sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(len(dead) / wanted, 1.0) * loss


@dataclass(kw_only=True)
class TrainingTranscoderConfig(BatchTopKTrainingSAEConfig):  # type: ignore[misc]
    """Configuration of a transcoder in training."""

    d_out: int = 768
    skip: bool = False
    apply_b_dec_to_input: bool = False

    @classmethod
    def architecture(cls) -> str:
        """Name it as SAELens' registry would."""
        return "batchtopk_transcoder"

    def get_inference_config_class(self) -> type[JumpReLUTranscoderConfig]:
        """Return what it is saved as."""
        return JumpReLUSkipTranscoderConfig if self.skip else JumpReLUTranscoderConfig


class TrainingTranscoder(TrainingSae):
    """A transcoder in training; takes input and output side by side, `(rows, d_in + d_out)`."""

    def initialize_weights(self) -> None:
        """Make parameters of the right widths; they are overwritten by the start."""
        cfg = self.cfg
        shapes = {
            "W_enc": (cfg.d_in, cfg.d_sae),
            "b_enc": (cfg.d_sae,),
            "W_dec": (cfg.d_sae, cfg.d_out),
            "b_dec": (cfg.d_out,),
        } | ({"W_skip": (cfg.d_out, cfg.d_in)} if cfg.skip else {})
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device)))

    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        """Leave `b_dec` alone: it lies in the output's space."""
        return sae_in.to(self.dtype)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Reconstruct the output from the input."""
        x, y = step_input.sae_in.split([self.cfg.d_in, self.cfg.d_out], -1)
        activations, pre = self.encode_with_hidden_pre(x)
        out = self.decode(activations)
        if self.cfg.skip:
            out = out + x @ self.W_skip.T
        mse = (out - y).square().sum(-1).mean()
        auxiliary = self.calculate_topk_aux_loss(
            sae_in=y, sae_out=out, hidden_pre=pre, dead_neuron_mask=step_input.dead_neuron_mask
        )
        return TrainStepOutput(
            sae_in=y,
            sae_out=out,
            feature_acts=activations,
            hidden_pre=pre,
            loss=mse + auxiliary,
            losses={"mse_loss": mse, "auxiliary_reconstruction_loss": auxiliary},
        )


class SaeLensTrainee:
    """One layer under `SAETrainer.step`, the seam that SAELens keeps for coordinators from outside."""

    def __init__(self, start: Dictionary, recipe: FitRecipe, plan: Plan) -> None:
        """Begin with a dictionary's weights; SAEs and (skip) transcoders alike."""
        self._dictionary = start
        self._sae = _training_sae(start, recipe)
        self._copy_in()
        rate = Rate(peak=recipe.lr, steps=plan.steps)
        device = str(start.W_enc.device)
        self._trainer: Any = SAETrainer(
            cfg=SAETrainerConfig(
                total_training_samples=plan.steps * plan.batch_tokens,
                train_batch_size_samples=plan.batch_tokens,
                lr=recipe.lr,
                lr_end=recipe.lr,
                lr_warm_up_steps=min(rate.warm_up_steps, plan.steps - 1),
                lr_decay_steps=min(rate.decay_steps, max(plan.steps - rate.warm_up_steps, 0)),
                device=device,
                dead_feature_window=max(1, recipe.dead_after_tokens // plan.batch_tokens),
                feature_sampling_window=1 << 60,
            ),
            sae=self._sae,
            data_provider=iter(()),
        )
        self._means = Means()

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        """The one, with the weights of now."""
        weights = {name: value for name, value in self._sae.named_parameters()}
        weights["W_dec"] = weights["W_dec"][None]
        load_weights(self._dictionary, weights)
        return [self._dictionary]

    def step(self, batch: Activations) -> None:
        """Take one step of SAELens' trainer."""
        place = self._dictionary.place
        x = batch[place.site_in] / place.scale_in
        if isinstance(self._sae, TrainingTranscoder):
            x = torch.cat([x, batch[place.sites_out[0]] / place.scales_out[0]], -1)
        output = self._trainer.step(x)
        self._trainer.n_training_steps += 1
        self._means.add("fvu", output.losses["mse_loss"] * (place.scales_out[0] ** 2 / place.variances[0]))
        self._means.add("l0", (output.feature_acts > 0).sum(-1).float().mean())

    def points(self, phase: str, tokens: int) -> list[FitPoint]:
        """Return the layer's means and the share of features that are dead now."""
        means = self._means.take()
        if not means:
            return []
        dead = float(self._trainer.dead_neurons.float().mean())
        layer = self._dictionary.place.layer
        return [
            FitPoint(
                phase=phase,
                layer=layer,
                tokens=tokens,
                fvu=means["fvu"],
                l0=means["l0"],
                dead_share=dead,
                kl=None,
            )
        ]

    def state(self) -> State:
        """Return weights, moments, firing counters, and where the learning rate is."""
        trainer = self._trainer
        tensors = prefixed("weights", dict(self._sae.named_parameters()))
        tensors |= prefixed("adam", optimiser_tensors(trainer.optimizer))
        tensors["since_fired"] = trainer.n_forward_passes_since_fired
        facts = {
            "steps": trainer.n_training_steps,
            "samples": trainer.n_training_samples,
            "schedule": trainer.lr_scheduler.state_dict(),
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "means": self._means.facts(),
        }
        return State(tensors=tensors, facts=facts)

    def restore(self, state: State) -> None:
        """Put everything back."""
        trainer = self._trainer
        with torch.no_grad():
            for name, value in under("weights", state.tensors).items():
                getattr(self._sae, name).copy_(value)
        restore_optimiser(trainer.optimizer, under("adam", state.tensors))
        since = state.tensors["since_fired"]
        trainer.n_forward_passes_since_fired = since.to(trainer.n_forward_passes_since_fired.device)
        trainer.n_training_steps = state.facts["steps"]
        trainer.n_training_samples = state.facts["samples"]
        trainer.lr_scheduler.load_state_dict(state.facts["schedule"])
        trainer.optimizer.param_groups[0]["lr"] = state.facts["lr"]
        self._means = Means.of(state.facts["means"])

    def _copy_in(self) -> None:
        with torch.no_grad():
            for name, value in self._dictionary.weights().items():
                getattr(self._sae, name).copy_(value[0] if name == "W_dec" else value)


def _training_sae(start: Dictionary, recipe: FitRecipe) -> Any:
    common: dict[str, Any] = {
        "d_in": start.W_enc.shape[0],
        "d_sae": start.d_sae,
        "k": float(recipe.k),
        "device": str(start.W_enc.device),
        "apply_b_dec_to_input": False,
    }
    if recipe.kind is LayerKind.SAE:
        return TrainingSae(BatchTopKTrainingSAEConfig(**common))
    skip = recipe.kind is LayerKind.SKIP_TRANSCODER
    d_out = start.W_dec.shape[2]
    return TrainingTranscoder(TrainingTranscoderConfig(**common, d_out=d_out, skip=skip))
