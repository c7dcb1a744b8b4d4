"""The use cases, bundled as the one object that the edge is given."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.audits import Audits
from trephine.app.circuits.circuit_annotations import CircuitAnnotations
from trephine.app.circuits.circuit_explanations import CircuitExplanations
from trephine.app.circuits.circuit_verification import CircuitVerifications
from trephine.app.circuits.circuit_views import CircuitViews
from trephine.app.circuits.circuits import Circuits
from trephine.app.circuits.dataset_circuits import DatasetCircuits
from trephine.app.circuits.global_circuits import GlobalCircuits
from trephine.app.edits.edit_composition import EditComposition
from trephine.app.edits.edit_evaluations import EditEvaluations
from trephine.app.edits.edit_evidence import EditEvidence
from trephine.app.edits.edits import Edits
from trephine.app.edits.live_edits import LiveEdits
from trephine.app.edits.proposals import Proposals
from trephine.app.exports.classifiers import Classifiers
from trephine.app.exports.edit_removal import EditRemoval
from trephine.app.exports.exports import Exports
from trephine.app.features.feature_indexes import FeatureIndexes
from trephine.app.features.feature_sets import FeatureSets
from trephine.app.features.features import Features
from trephine.app.features.labels import Labels
from trephine.app.models.models import Models
from trephine.app.operations import Operations
from trephine.app.sets.evaluations import Evaluations
from trephine.app.sets.fits import Fits
from trephine.app.sets.replacements import Replacements
from trephine.app.spurious.spurious_removals import SpuriousRemovals
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.uploads import Uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything that a servicer may ask for."""

    models: Models
    operations: Operations
    circuits: Circuits
    dataset_circuits: DatasetCircuits
    global_circuits: GlobalCircuits
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
