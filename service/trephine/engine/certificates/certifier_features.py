"""What a certificate says of each of several edited features. Imports nothing of Trephine.

Lies beside the certifier and is loaded by path, as `certifier_figures` is. With b the way from the edit
without a feature to the edit (the difference of their logits, each less its mean under the former's
distribution), and a the way from the same place to the checkpoint, `carried` is E[a b] / E[b b] over tokens
on which the feature fires: 1 where the checkpoint does of it what the edit does, 0 where it leaves it alone,
whatever it makes of the other features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Features:
    """Several features, measured window by window."""

    def __init__(self, folder: str, names: list[str]) -> None:
        """Start with no windows.

        Args:
            folder: Of the evidence.
            names: Of the features, in the order of their files.
        """
        self._folder, self._names = Path(folder), names
        self._left: list[list[Any]] = [[] for _ in names]
        self._edit: list[list[Any]] = [[] for _ in names]
        self._firing: list[Any] = []
        self._shared = [0.0] * len(names)
        self._way = [0.0] * len(names)

    def add(self, number: int, intervened: Any, logits: Any, left: Any, edit: Any) -> None:
        """Add a window.

        Args:
            number: Its own.
            intervened: What the runtime answers, float32 `(n_pos, d_vocab)`.
            logits: What the checkpoint answers.
            left: KL(intervened || checkpoint) per position.
            edit: KL(intervened || original).
        """
        from safetensors.torch import load_file

        if not self._names:
            return
        firing = load_file(str(self._folder / f"features-{number:04d}.safetensors"))["firing"]
        self._firing.append(firing)
        for place, mask in enumerate(firing):
            self._left[place].append(left[mask])
            self._edit[place].append(edit[mask])
            path = str(self._folder / f"without-{place:03d}-{number:04d}.safetensors")
            if os.path.exists(path):
                found = load_file(path)
                at = found["positions"]
                shared, way = _along(found["logits"], intervened[at], logits[at])
                self._shared[place] += shared
                self._way[place] += way

    def describe(self, measured: dict[str, float]) -> None:
        """Add every feature's figures, its name behind a colon; nothing of one that never fires."""
        import torch

        for place, name in enumerate(self._names):
            left, edit = (torch.cat(parts[place]) for parts in (self._left, self._edit))
            measured[f"firing_tokens:{name}"] = float(len(left))
            if len(left):
                measured[f"kl_intervened_exported_firing_mean:{name}"] = float(left.mean())
                measured[f"edit_kl_firing_mean:{name}"] = float(edit.mean())
            if len(left) and float(edit.mean()) > 0:
                share = float(left.mean() / edit.mean())
                measured[f"unrecovered_firing:{name}"] = share
                measured[f"recovery_firing:{name}"] = 1.0 - share
            if self._way[place] > 0:
                carried = self._shared[place] / self._way[place]
                measured[f"carried:{name}"] = carried
                measured[f"uncarried:{name}"] = abs(1.0 - carried)

    def where_firing(self, measured: dict[str, float], name: str, parts: list[Any]) -> None:
        """Add the mean of another figure per feature, on its own tokens.

        Args:
            measured: What it is added to.
            name: Of the figure.
            parts: Its values per position of every window that was added, in their order.
        """
        import torch

        for place, feature in enumerate(self._names):
            chosen = torch.cat([part[mask[place]] for part, mask in zip(parts, self._firing, strict=True)])
            if len(chosen):
                measured[f"{name}_firing_mean:{feature}"] = float(chosen.mean())


def _along(without: Any, intervened: Any, logits: Any) -> tuple[float, float]:
    """Return sums over tokens of E[a b] and E[b b]."""
    import torch

    p = torch.softmax(without.double(), -1)
    a, b = (each.double() - without.double() for each in (logits, intervened))
    a, b = (each - (p * each).sum(-1, keepdim=True) for each in (a, b))
    return float((p * a * b).sum()), float((p * b * b).sum())
