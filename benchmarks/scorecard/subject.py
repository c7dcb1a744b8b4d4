"""What a card is of, and how much is measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.domain.sites import NEURONS
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Session

DICTIONARIES = {"the set": NAME, "neurons": NEURONS}
"""What circuits are of, by what the card calls it."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; the defaults take about forty minutes of one core on SmolLM2."""

    contexts: int = 8
    """Of the held-out text that sets are spliced on, 128 tokens each."""
    perturbations: int = 24
    induction_steps: int = 3000
    induction_pairs: int = 24
    prompts: int = 4
    nodes: int = 128
    """Feature nodes of a graph, and of a behaviour's circuit."""
    examples: int = 32
    """Training contexts of a behaviour; half as many are held out."""
    draws: int = 20
    """Random circuits, and subsamples of stability."""
    texts: int = 48
    """A global circuit's; a sixth as many are held out."""
    candidates: int = 1024
    global_nodes: int = 128
    edges: int = 48
    lengths: tuple[int, ...] = (48, 64, 96, 128, 192, 256)
    growth_nodes: int = 256
    items: int = 24
    controls: int = 99
    windows: int = 24
    """That exports are measured on, 128 tokens each."""
    spurious_texts: int = 200
    """Test texts per group."""
    seed: int = 0


@dataclass(kw_only=True)
class Subject:
    """A model, a set, texts and data; the model is loaded when a figure is not kept."""

    model: Path
    folder: Path
    """Of the set."""
    data: Path
    text: Path
    """Held out: neither the set nor the model was fitted on it, as far as is known."""
    out: Path
    sizes: Sizes = field(default_factory=Sizes)
    _session: Session | None = None

    @property
    def session(self) -> Session:
        """The model with the set."""
        if self._session is None:
            self._session = Session(hosted=load_model(self.model))
            load_set(self._session, self.folder)
        return self._session

    @property
    def hosted(self) -> HostedModel:
        """The model."""
        return self.session.require_model()

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the figures are of, by content: every byte of it is read, once."""
        return {
            "model": f"{self.model.name}, {_digest(self.model, '*.safetensors')}",
            "set": f"{self.folder.name}, {_digest(self.folder, '*')}",
            "text": f"{self.text.name}, {_digest(self.text.parent, self.text.name)}",
        }


def _digest(folder: Path, pattern: str) -> str:
    found = hashlib.sha256()
    for file in sorted(folder.glob(pattern)):
        if file.is_file():
            found.update(file.name.encode())
            with file.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]
