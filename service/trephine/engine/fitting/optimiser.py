"""Adam with a warm-up and a decay that are functions of the step, and its state as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARM_UP, DECAY = 0.05, 0.2
"""Shares of all steps: the rate rises linearly at the start and falls to 0 at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The learning rate over a stage."""

    peak: float
    steps: int

    @property
    def warm_up_steps(self) -> int:
        """Steps in which it rises."""
        return max(1, round(WARM_UP * self.steps))

    @property
    def decay_steps(self) -> int:
        """Steps in which it falls."""
        return max(1, round(DECAY * self.steps))

    def at(self, step: int) -> float:
        """Return the rate of a step, counted from 0; beyond the last step it stays at its last value."""
        step = min(step, self.steps - 1)
        rising = min(1.0, (step + 1) / self.warm_up_steps)
        falling = min(1.0, (self.steps - step) / (self.decay_steps + 1))
        return self.peak * rising * falling


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    """Make the optimiser; its rate is set before every step."""
    return torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.999))


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as `INDEX/NAME` tensors, indices counted over its parameters."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    return {
        f"{index}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, parameter in enumerate(parameters)
        for name, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` returned."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, name = key.split("/")
        parameter = parameters[int(index)]
        # Adam keeps its step counters on the CPU, everything else beside the parameter.
        optimiser.state[parameter][name] = value.clone() if name == "step" else value.to(parameter.device)
