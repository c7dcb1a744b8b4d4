"""The use cases, bundled as the one object that the edge is given."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.artifacts import ArtifactStore
from trephine.app.audits import Audits
from trephine.app.circuit_annotations import CircuitAnnotations
from trephine.app.circuit_explanations import CircuitExplanations
from trephine.app.circuit_verification import CircuitVerifications
from trephine.app.circuit_views import CircuitViews
from trephine.app.circuits import Circuits
from trephine.app.classifiers import Classifiers
from trephine.app.dataset_circuits import DatasetCircuits
from trephine.app.edit_composition import EditComposition
from trephine.app.edit_evaluations import EditEvaluations
from trephine.app.edit_evidence import EditEvidence
from trephine.app.edit_removal import EditRemoval
from trephine.app.edits import Edits
from trephine.app.evaluations import Evaluations
from trephine.app.exports import Exports
from trephine.app.feature_indexes import FeatureIndexes
from trephine.app.feature_sets import FeatureSets
from trephine.app.features import Features
from trephine.app.fits import Fits
from trephine.app.labels import Labels
from trephine.app.live_edits import LiveEdits
from trephine.app.models import Models
from trephine.app.operations import Operations
from trephine.app.proposals import Proposals
from trephine.app.replacements import Replacements
from trephine.app.spurious_removals import SpuriousRemovals
from trephine.app.uploads import Uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything that a servicer may ask for."""

    models: Models
    operations: Operations
    circuits: Circuits
    dataset_circuits: DatasetCircuits
    circuit_views: CircuitViews
    circuit_annotations: CircuitAnnotations
    circuit_explanations: CircuitExplanations
    circuit_verifications: CircuitVerifications
    proposals: Proposals
    edits: Edits
    edit_composition: EditComposition
    edit_evaluations: EditEvaluations
    edit_evidence: EditEvidence
    edit_removal: EditRemoval
    live_edits: LiveEdits
    exports: Exports
    spurious_removals: SpuriousRemovals
    classifiers: Classifiers
    audits: Audits
    replacements: Replacements
    evaluations: Evaluations
    fits: Fits
    feature_sets: FeatureSets
    feature_indexes: FeatureIndexes
    features: Features
    labels: Labels
    artifacts: ArtifactStore
    uploads: Uploads
