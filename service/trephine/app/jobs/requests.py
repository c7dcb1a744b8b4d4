"""What each kind of operation is asked to do, as frozen values that are stored as artifacts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from trephine.domain.circuit_queries import Pruning
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.dataset_circuits import DiscoverDatasetCircuit
from trephine.domain.edit_evaluation import (
    EvaluationBounds,
    EvaluationSet,
    FeatureControls,
    PromptingOptions,
)
from trephine.domain.edits import ProposeEdit
from trephine.domain.exports import ExportOptions
from trephine.domain.features import IndexFeatures
from trephine.domain.findings import AuditSpec
from trephine.domain.fitting import FitRecipe
from trephine.domain.global_circuits import DiscoverGlobalCircuit
from trephine.domain.models import ModelSource
from trephine.domain.replacements import EvaluateReplacementSet, ReplacementSource
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.verification import VerificationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Load a model. The result is `models/<name>`."""

    source: ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverRequest:
    """Find a circuit. The result is `circuits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: DiscoverCircuit
    pruning: Pruning | None = None
    """What is stored of it; None: everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCircuitRequest:
    """Find the circuit of a behaviour. The result is `datasetCircuits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: DiscoverDatasetCircuit


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCircuitRequest:
    """Find a circuit that no single prompt decides. The result is `circuits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: DiscoverGlobalCircuit


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeRequest:
    """Find what could ship. The result is `proposals/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: ProposeEdit


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateEditRequest:
    """Measure an edit. The result is `edits/<edit>/evaluations/<operation id>`."""

    edit: str
    """Name of a stored edit, with a version or without."""
    sets: tuple[EvaluationSet, ...]
    model: str | None = None
    """Loaded model; None: the edit's own."""
    controls: FeatureControls = field(default_factory=FeatureControls)
    bounds: EvaluationBounds = field(default_factory=EvaluationBounds)
    prompting: PromptingOptions | None = field(default_factory=PromptingOptions)
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSpuriousRequest:
    """Remove spurious features of a decision. The result is `spuriousRemovals/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: RemoveSpuriousFeatures
    """Of a given head the folder is what the caller named; it is resolved when the work begins."""
    edit_id: str = ""
    """Edit to create; empty: none."""
    author: str = ""
    unproven: bool = False
    """Create it even where the removal was not shown to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportClassifierRequest:
    """Publish a report's head. The result is `classifiers/<classifier_id>`."""

    removal: str
    """Name of a report."""
    export: str | None
    """Name of an export of its edit; None: the model's own weights."""
    classifier_id: str
    """Name of the folder to publish in the export root; must not exist."""
    texts: tuple[str, ...] = ()
    """What the reloaded folder is compared on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Compile and publish an edit. The result is `exports/<export_id>`."""

    edit: str
    """Name of a stored edit."""
    export_id: str
    """Name of the folder to publish in the export root; must not exist."""
    model: str | None = None
    """Loaded model to compile from; None: the edit's own."""
    keep_rejected: bool = False
    """Keep a folder that misses a gate as `NAME.rejected`."""
    options: ExportOptions = field(default_factory=ExportOptions)
    """How it is compiled and judged."""
    sigstore: bool = False
    """Sign as an identity, with Sigstore, in place of the server's key."""
    token_given: bool = False
    """An identity token came with the request; False: the server's own identity signs."""
    identity_token: Annotated[str | None, Field(exclude=True)] = field(
        default=None, repr=False, compare=False
    )
    """The token: in memory alone, never in what is stored or shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """Run one auditor on one model. The result is `audits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    spec: AuditSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSetRequest:
    """Load a replacement set. The result is `models/<model>/replacements/<set>`."""

    model: str
    """Name of a loaded model."""
    source: ReplacementSource


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSetRequest:
    """Measure a loaded replacement set. The result is `evaluations/<operation id>`."""

    model: str
    """Name of a loaded model."""
    command: EvaluateReplacementSet
    """Its texts are empty; they are read from the artifacts when the work begins."""
    text: str = ""
    """Artifact with the held-out text; empty: the built-in one."""
    control_text: str = ""
    """Artifact with the text that controls are fitted on; empty: the built-in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSetRequest:
    """Fit a replacement set. The result is `fits/<operation id>`."""

    model: str
    """Name of a loaded model."""
    set_id: str
    """Name of the folder to publish in the first replacement root; must not exist."""
    recipe: FitRecipe
    corpus: str = ""
    """Artifact, or a folder inside a replacement root; empty: the model's own samples."""
    corpus_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """Build a feature index. The result is `featureIndexes/<id>`, named by what it is made of."""

    model: str
    """Name of a loaded model."""
    command: IndexFeatures
    """Its paths are empty; they are filled in when the work begins."""
    corpus: str = ""
    """Artifact with the corpus; empty: the built-in text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """Verify a stored circuit. The result is `circuitVerifications/<operation id>`."""

    circuit: str
    """Name of a stored circuit."""
    model: str = ""
    """Name of a loaded model; empty: the circuit's own."""
    node_threshold: float | None = None
    """Of the circuit within the graph. None: what files of the circuit show."""
    edge_threshold: float | None = None
    supernodes: tuple[tuple[int, ...], ...] = ()
    """Empty: the circuit's own groups, if it has any."""
    options: VerificationOptions = field(default_factory=VerificationOptions)


OperationRequest = (
    LoadRequest
    | DiscoverRequest
    | DatasetCircuitRequest
    | GlobalCircuitRequest
    | ProposeRequest
    | EvaluateEditRequest
    | RemoveSpuriousRequest
    | ExportClassifierRequest
    | ExportRequest
    | AuditRequest
    | LoadSetRequest
    | EvaluateSetRequest
    | FitSetRequest
    | IndexRequest
    | VerifyRequest
)

REQUEST_TYPES: dict[str, type[OperationRequest]] = {
    "LoadModel": LoadRequest,
    "DiscoverCircuit": DiscoverRequest,
    "DiscoverDatasetCircuit": DatasetCircuitRequest,
    "DiscoverGlobalCircuit": GlobalCircuitRequest,
    "ProposeEdit": ProposeRequest,
    "EvaluateEdit": EvaluateEditRequest,
    "RemoveSpuriousFeatures": RemoveSpuriousRequest,
    "ExportClassifier": ExportClassifierRequest,
    "ExportCheckpoint": ExportRequest,
    "RunAudit": AuditRequest,
    "LoadReplacementSet": LoadSetRequest,
    "EvaluateReplacementSet": EvaluateSetRequest,
    "FitReplacementSet": FitSetRequest,
    "BuildFeatureIndex": IndexRequest,
    "VerifyCircuit": VerifyRequest,
}
"""The methods that are operations, and what each is asked with."""
