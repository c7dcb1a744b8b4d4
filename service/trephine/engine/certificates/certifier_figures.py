"""What a certificate makes of answers: distances, shares, spreads. Imports nothing of Trephine.

Lies beside the certifier and is loaded by path: an isolated interpreter does not look beside its script.
"""

from __future__ import annotations

import math
from typing import Any


def kl(p_logits: Any, q_logits: Any) -> Any:
    """Return KL(p || q) per position in nats, float64, without the cancellation of two log-softmaxes.

    With d = p_logits - q_logits and x = d - E_p[d]: KL = log E_p[exp(-x)] = log1p(E_p[expm1(-x) + x]).
    """
    import torch

    # Four positions at a time stay in the processor's cache.
    return torch.cat([_kl(p, q) for p, q in zip(p_logits.split(4), q_logits.split(4), strict=True)])


def _kl(p_logits: Any, q_logits: Any) -> Any:
    import torch

    p, x = torch.softmax(p_logits, -1), p_logits - q_logits
    x -= (p * x).sum(-1, keepdim=True)
    if bool(x.abs().max() < 30.0):
        surplus = x.neg().expm1_().add_(x).mul_(p).sum(-1)  # of terms that are not negative
        return torch.log1p(surplus.double()).clamp_min(0.0)
    log_p, log_q = (torch.log_softmax(t.double(), -1) for t in (p_logits, q_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def next_token_loss(logits: Any, ids: list[int]) -> Any:
    """Return the negative log-probability of every next token in nats, float64 `(n_pos - 1,)`."""
    import torch

    log_p = torch.log_softmax(logits[:-1].double(), -1)
    return -log_p.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def spread(measured: dict[str, float], name: str, parts: list[Any]) -> None:
    """Add mean, median, 99th and 99.9th percentile and maximum of per-position values."""
    import torch

    values = torch.cat(parts)
    measured[f"{name}_mean"] = float(values.mean())
    measured[f"{name}_p50"] = float(values.quantile(0.5))
    measured[f"{name}_p99"] = float(values.quantile(0.99))
    measured[f"{name}_p999"] = float(values.quantile(0.999))
    measured[f"{name}_max"] = float(values.max())
    measured["nonfinite_values"] += float((~torch.isfinite(values)).sum())


def firing_spread(measured: dict[str, float], name: str, parts: list[Any], masks: list[Any]) -> None:
    """Summarise per-position values where a mask holds; nothing where it never does."""
    chosen = [part[mask] for part, mask in zip(parts, masks, strict=True) if mask is not None]
    if chosen and sum(part.numel() for part in chosen):
        spread(measured, f"{name}_firing", chosen)


def everywhere(measured: dict[str, float], name: str, parts: list[Any], masks: list[Any]) -> None:
    """Summarise per-position values over all tokens, over firing ones and over position 0."""
    spread(measured, name, parts)
    spread(measured, f"{name}_first", [part[:1] for part in parts])
    firing_spread(measured, name, parts, masks)


def recover(measured: dict[str, float], name: str, left: str, edit: str) -> None:
    """Add 1 - KL(intervened || exported) / KL(intervened || original), over all and over firing tokens.

    Nothing is added where the edit moves nothing, or no token was measured.
    """
    for where in ("", "_firing"):
        moved = measured.get(f"{edit}{where}_mean", 0.0)
        if moved > 0:
            measured[f"{name}{where}"] = 1.0 - measured[f"{left}{where}_mean"] / moved


class Comparison:
    """A model's answers beside a reference's, added window by window, and what they come to."""

    def __init__(self) -> None:
        """Start with no windows."""
        self._left: list[Any] = []
        self._edit: list[Any] = []
        self._same: list[Any] = []
        self._surplus: list[Any] = []

    @property
    def windows(self) -> int:
        """How many were added."""
        return len(self._left)

    @property
    def left(self) -> list[Any]:
        """KL(reference || model) per position of every window."""
        return self._left

    @property
    def agreement(self) -> float:
        """Share of positions at which both find the same token most likely."""
        import torch

        return float(torch.cat(self._same).mean())

    @property
    def perplexity_ratio(self) -> float:
        """The model's perplexity over the reference's."""
        import torch

        return math.exp(float(torch.cat(self._surplus).mean()))

    def add(self, reference: Any, logits: Any, ids: list[int], edit: Any = None) -> None:
        """Add a window.

        Args:
            reference: Logits, float32 `(n_pos, d_vocab)`.
            logits: The model's.
            ids: The window's tokens.
            edit: KL(reference || the reference without the edit) per position; None: not to be described.
        """
        self._left.append(kl(reference, logits))
        self._edit += [] if edit is None else [edit]
        self._same.append((logits.argmax(-1) == reference.argmax(-1)).double())
        self._surplus.append(next_token_loss(logits, ids) - next_token_loss(reference, ids))

    def describe(self, measured: dict[str, float], suffix: str, masks: list[Any]) -> None:
        """Add distance, edit, share recovered, agreement and ratio of perplexities, their names suffixed."""
        left, edit = f"kl_intervened_exported{suffix}", f"edit_kl{suffix}"
        everywhere(measured, left, self._left, masks)
        everywhere(measured, edit, self._edit, masks)
        recover(measured, f"recovery{suffix}", left, edit)
        measured[f"top1_agreement{suffix}"] = self.agreement
        measured[f"perplexity_ratio{suffix}"] = self.perplexity_ratio
