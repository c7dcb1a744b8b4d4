"""Building the service, once: the only place that names concrete classes.

Nothing here imports torch; engines do, each in its own process (DESIGN 5.10).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from trephine.app.edits.edit_stacks import EditStacks
from trephine.app.edits.edits import Edits
from trephine.app.edits.live_edits import LiveEdits
from trephine.app.edits.proposals import Proposals
from trephine.app.exports.classifiers import Classifiers
from trephine.app.exports.edit_removal import EditRemoval
from trephine.app.exports.exports import Exports
from trephine.app.exports.signing_key import signing_key
from trephine.app.features.feature_indexes import FeatureIndexes
from trephine.app.features.feature_sets import FeatureSets
from trephine.app.features.features import Features
from trephine.app.features.labels import Labels
from trephine.app.jobs.jobs import Jobs
from trephine.app.jobs.journal import Journal
from trephine.app.models.models import Models
from trephine.app.operations import Operations
from trephine.app.service import Service
from trephine.app.sets.evaluations import Evaluations
from trephine.app.sets.fits import Fits
from trephine.app.sets.replacements import Replacements
from trephine.app.spurious.spurious_removals import SpuriousRemovals
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock
from trephine.app.storage.roots import ReplacementRoots
from trephine.app.storage.state import StateFolder
from trephine.app.storage.uploads import Uploads
from trephine.app.work import Work
from trephine.auditors.reports import Reports
from trephine.domain.ports import AuditorHost, EngineLauncher
from trephine.domain.signing import IdentitySigner
from trephine.ipc.auditor_host import SubprocessAuditorHost
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.server.settings import Settings
from trephine.server.sigstore import SubprocessSigstore


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The service with what must be opened and closed around it."""

    service: Service
    journal: Journal

    async def open(self) -> None:
        """Resume what an earlier server left unfinished."""
        known = {record.id for record in self.journal.all()}
        self.service.exports.sweep(known)
        self.service.fits.sweep(known)
        await self.service.operations.open()

    async def close(self) -> None:
        """Stop operations so that the next server resumes them, then end every engine."""
        await self.service.operations.close()
        await self.service.models.close()


def build(
    settings: Settings,
    state: StateFolder,
    *,
    launcher: EngineLauncher | None = None,
    host: AuditorHost | None = None,
    clock: Clock | None = None,
    identity_signer: IdentitySigner | None = None,
) -> House:
    """Build the service on a state folder.

    Args:
        settings: What was chosen.
        state: The folder, locked by this process.
        launcher: Starts engines; None: processes of this interpreter.
        host: Runs auditors; None: processes of this interpreter.
        clock: None: the machine's.
        identity_signer: Signs exports as identities; None: Sigstore does.
    """
    clock = clock or SystemClock()
    launcher = launcher or SubprocessEngineLauncher(threads=settings.engine_threads)
    export_root = settings.export_root or state.default_export_root
    models = _models(settings, state, launcher, export_root)
    artifacts = ArtifactStore(settings.artifacts_url or _url(state.folder("artifacts")), clock=clock)
    sets = _replacement_roots(settings)
    replacements = Replacements(models, sets)
    feature_sets = FeatureSets(models, replacements)
    edits = Edits(state.folder("edits"), models, feature_sets, clock=clock)
    stacks = EditStacks(edits, models, replacements)
    live = LiveEdits(state.folder("live-edits"), stacks, clock=clock)
    indexes = FeatureIndexes(
        state.folder("feature-indexes"), models=models, sets=feature_sets, artifacts=artifacts, clock=clock
    )
    labels = Labels(state.path / "labels.sqlite", clock=clock)
    circuits = Circuits(state.folder("circuits"), artifacts, clock=clock)
    exports = Exports(
        state.folder("exports"),
        export_root=export_root,
        models=models,
        edits=edits,
        signing_key=signing_key(state.path, settings.signing_key),
        identity_signer=identity_signer or _sigstore(settings),
        sigstore_trust_config=settings.sigstore_trust_config,
        clock=clock,
    )
    removals = SpuriousRemovals(
        state.folder("spurious-removals"),
        models=models,
        edits=edits,
        sets=feature_sets,
        artifacts=artifacts,
        clock=clock,
    )
    work = Work(
        models=models,
        circuits=circuits,
        circuit_verifications=CircuitVerifications(
            state.folder("circuit-verifications"),
            circuits=circuits,
            models=models,
            replacements=replacements,
            clock=clock,
        ),
        dataset_circuits=DatasetCircuits(
            state.folder("dataset-circuits"), models=models, replacements=replacements, clock=clock
        ),
        global_circuits=GlobalCircuits(circuits, models=models, replacements=replacements),
        proposals=Proposals(state.folder("proposals")),
        edit_evaluations=EditEvaluations(
            state.folder("edit-evaluations"), edits=edits, models=models, clock=clock
        ),
        exports=exports,
        spurious_removals=removals,
        classifiers=Classifiers(
            state.folder("classifiers"),
            export_root=export_root,
            models=models,
            edits=edits,
            exports=exports,
            removals=removals,
        ),
        audits=Audits(
            state.folder("audits"),
            models=models,
            host=host or SubprocessAuditorHost(),
            writer=Reports(),
            artifacts=artifacts,
            clock=clock,
        ),
        replacements=replacements,
        evaluations=Evaluations(
            state.folder("evaluations"),
            models=models,
            replacements=replacements,
            artifacts=artifacts,
            clock=clock,
        ),
        fits=Fits(
            state.folder("fits"),
            work=state.folder("fitting"),
            roots=sets,
            models=models,
            artifacts=artifacts,
            clock=clock,
        ),
        feature_indexes=indexes,
    )
    journal = Journal(state.folder("operations"), clock)
    return House(
        service=Service(
            models=models,
            operations=_operations(settings, state, journal, work, clock),
            circuits=work.circuits,
            dataset_circuits=work.dataset_circuits,
            global_circuits=work.global_circuits,
            circuit_verifications=work.circuit_verifications,
            circuit_views=CircuitViews(work.circuits, artifacts),
            circuit_annotations=CircuitAnnotations(work.circuits, models, clock=clock),
            circuit_explanations=CircuitExplanations(work.circuits, models),
            proposals=work.proposals,
            edits=edits,
            edit_evaluations=work.edit_evaluations,
            edit_composition=EditComposition(edits, stacks),
            edit_evidence=_evidence(work, edits, artifacts),
            edit_removal=EditRemoval(
                edits, exports=work.exports, evaluations=work.edit_evaluations, live=live
            ),
            live_edits=live,
            exports=work.exports,
            spurious_removals=work.spurious_removals,
            classifiers=work.classifiers,
            audits=work.audits,
            replacements=replacements,
            evaluations=work.evaluations,
            fits=work.fits,
            feature_sets=feature_sets,
            feature_indexes=indexes,
            features=Features(
                models=models, sets=feature_sets, indexes=indexes, labels=labels, artifacts=artifacts
            ),
            labels=labels,
            artifacts=artifacts,
            uploads=Uploads(state.folder("uploads"), artifacts, clock=clock),
        ),
        journal=journal,
    )


def _evidence(work: Work, edits: Edits, artifacts: ArtifactStore) -> EditEvidence:
    """Say where the records lie that edits may rest on."""
    return EditEvidence(
        {
            "circuits": work.circuits.get,
            "datasetCircuits": work.dataset_circuits.get,
            "circuitVerifications": work.circuit_verifications.get,
            "evaluations": work.evaluations.get,
            "proposals": work.proposals.get,
            "exports": work.exports.get,
            "featureIndexes": work.feature_indexes.get,
            "spuriousRemovals": work.spurious_removals.get,
        },
        audits=work.audits,
        edits=edits,
        evaluations=work.edit_evaluations,
        indexes=work.feature_indexes,
        artifacts=artifacts,
    )


def _sigstore(settings: Settings) -> SubprocessSigstore:
    return SubprocessSigstore(
        token_file=settings.sigstore_token_file, trust_config=settings.sigstore_trust_config
    )


def _models(settings: Settings, state: StateFolder, launcher: EngineLauncher, export_root: Path) -> Models:
    cached = settings.cache / "models"
    cached.mkdir(parents=True, exist_ok=True)
    return Models(
        launcher=launcher,
        roots=(cached, *settings.model_roots),
        export_root=export_root,
        remembered=state.folder("models"),
        memory_budget_bytes=settings.memory_budget_bytes,
    )


def _replacement_roots(settings: Settings) -> ReplacementRoots:
    cached = settings.cache / "replacements"
    cached.mkdir(parents=True, exist_ok=True)
    return ReplacementRoots((cached, *settings.replacement_roots))


def _operations(
    settings: Settings, state: StateFolder, journal: Journal, work: Work, clock: Clock
) -> Operations:
    executor = state.executor_id()
    jobs = (
        Jobs.sqlite(state.jobs_database, executor_id=executor)
        if settings.database_url is None
        else Jobs(database_url=settings.database_url, executor_id=executor)
    )
    # Requests are kept apart from artifacts, which clients may delete.
    requests = ArtifactStore(_url(state.folder("requests")), clock=clock)
    return Operations(jobs=jobs, journal=journal, requests=requests, work=work, clock=clock)


def _url(folder: Path) -> str:
    return folder.as_uri()
