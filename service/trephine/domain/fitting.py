"""Fitting replacement layers offline."""

from __future__ import annotations

from dataclasses import dataclass, field

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import SiteKind


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd:
    """A short balanced KL + MSE phase through the whole model with all layers spliced (Karvonen 2025)."""

    tokens: int
    """0 skips the phase."""
    lr: float = 5e-4
    local_control: bool = True
    """Train a copy on with the local loss for the same tokens, and report both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecipe:
    """What is fitted, and how."""

    kind: LayerKind = LayerKind.TRANSCODER
    site: SiteKind = SiteKind.MLP_IN
    """Input site; an SAE's only one. Transcoders read `mlp_in` and write `mlp_out`."""
    layers: tuple[int, ...] = ()
    """Empty: all."""
    d_sae: int = 2048
    k: int = 32
    """Active features per position that are aimed at."""
    tokens: int = 1_000_000
    """Training tokens of the local phase."""
    context_tokens: int = 128
    batch_tokens: int = 2048
    lr: float = 1e-3
    dead_after_tokens: int = 200_000
    """A feature that has not fired for so long takes part in the auxiliary loss."""
    warm_start: bool = True
    """Start transcoders from the MLP's own neurons."""
    end_to_end: EndToEnd = field(default_factory=lambda: EndToEnd(tokens=0))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("d_sae", "k", "tokens", "context_tokens", "batch_tokens", "dead_after_tokens"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} must be at least 1", field=f"recipe.{name}")
        if self.k > self.d_sae:
            raise InvalidRequestError("k must not exceed d_sae", field="recipe.k")
        if not self.lr > 0:
            raise InvalidRequestError("lr must be above 0", field="recipe.lr")
        if self.kind is LayerKind.NEURONS:
            raise InvalidRequestError("neurons need no fitting; they are always there", field="recipe.kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPoint:
    """One point of a training curve."""

    phase: str
    """`local`, `end_to_end`, `local_control`."""
    layer: int
    """-1: over all layers."""
    tokens: int
    fvu: float
    l0: float
    dead_share: float
    kl: float | None
    """Nats per token with all layers spliced, in the end-to-end phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLayer:
    """One layer after fitting, on held-out contexts."""

    layer: int
    fvu: float
    l0: float
    dead_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GapClosed:
    """What the end-to-end phase closed of the spliced model's cross-entropy gap."""

    ce_plain: float
    ce_local: float
    """Before the phase, nats per token, all layers spliced, held-out text."""
    ce_end_to_end: float
    ce_local_control: float | None
    """The local loss continued for the same tokens."""
    closed: float
    """(ce_reference - ce_end_to_end) / (ce_reference - ce_plain).

    The reference is the control where there is one.
    """
    l0_change: float
    """Relative change of mean L0 against the reference, on the plain or the spliced run: the larger one."""
    seconds_end_to_end: float = 0.0
    seconds_local_control: float | None = None
    """What the phase and its control took: equal tokens are not equal time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """A fitted set."""

    recipe: FitRecipe
    layers: tuple[FittedLayer, ...]
    curve: tuple[FitPoint, ...]
    gap: GapClosed | None
    corpus: str
    tokens: int
    model: str
    weight_hash: str
    seconds: float
    peak_bytes: int
    resumed: int
    """How many times the work was taken up from a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedFit:
    """What fitting would take, from a few measured steps' worth of arithmetic."""

    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReplacementSet(Command[FitReport, Progress]):
    """Fit a set in a process of its own; it writes a SAELens (or CLT) folder and keeps checkpoints.

    Run again with the same `checkpoints` it goes on from the last checkpoint.
    """

    interactive = False

    recipe: FitRecipe
    corpus: str | None
    """Path of a text file, a JSONL file with a `text` column, or a datasets folder.

    None: the model's own samples.
    """
    corpus_name: str
    folder: str
    """Where the finished set is written, and nothing else: it is published as it is. Empty or absent.
    Neither folder leaves the server."""
    checkpoints: str
    """Where the work is kept; may hold this fit's checkpoints from an earlier run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictFit(Command[PredictedFit, Progress]):
    """Predict time, memory and disk of a fit without starting it."""

    recipe: FitRecipe
    own_samples: bool = False
    """Whether the model must write its own text first."""
