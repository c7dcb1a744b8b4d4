"""The use cases on a temporary state folder, with fakes for everything outside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes.auditor_host import FakeAuditorHost
from tests.fakes.clock import FakeClock
from tests.fakes.launcher import FakeLauncher
from trephine.app.audits import Audits
from trephine.app.circuits.circuit_annotations import CircuitAnnotations
from trephine.app.circuits.circuit_verification import CircuitVerifications
from trephine.app.circuits.circuit_views import CircuitViews
from trephine.app.circuits.circuits import Circuits
from trephine.app.circuits.dataset_circuits import DatasetCircuits
from trephine.app.circuits.global_circuits import GlobalCircuits
from trephine.app.edits.edit_evaluations import EditEvaluations
from trephine.app.edits.edit_stacks import EditStacks
from trephine.app.edits.edits import Edits
from trephine.app.edits.live_edits import LiveEdits
from trephine.app.edits.proposals import Proposals
from trephine.app.exports.classifiers import Classifiers
from trephine.app.exports.exports import Exports
from trephine.app.features.feature_indexes import FeatureIndexes
from trephine.app.features.feature_sets import FeatureSets
from trephine.app.features.features import Features
from trephine.app.features.labels import Labels
from trephine.app.jobs.journal import Journal
from trephine.app.models.models import Models
from trephine.app.operations import Operations
from trephine.app.sets.evaluations import Evaluations
from trephine.app.sets.fits import Fits
from trephine.app.sets.replacements import Replacements
from trephine.app.spurious.spurious_removals import SpuriousRemovals
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.roots import ReplacementRoots
from trephine.app.work import Work
from trephine.domain.ablation import LogitTarget
from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, CircuitFigures, DiscoverCircuit, Edges, Node, NodeKind, Rows
from trephine.domain.edits import Edit
from trephine.domain.exports import Certificate, CompileExport, Export, ExportedFile, ExportPlan, PlanExport
from trephine.domain.findings import AuditReport, ReportFormat
from trephine.domain.models import LoadModel, ModelInfo
from trephine.domain.signing import IdentitySigner
from trephine.domain.targets import ExplainedTarget, TargetKind
from trephine.domain.tokens import Token

TOKEN = Token(id=1, raw=b"\xff", display="�")


def model_info(name: str = "tiny", weight_hash: str = "w" * 64) -> ModelInfo:
    """A loaded model with 2 layers of 16 neurons."""
    return ModelInfo(
        name=name,
        architecture="LlamaForCausalLM",
        weight_hash=weight_hash,
        parent_hash=weight_hash,
        dtype="float32",
        device="cpu",
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        d_model=8,
        d_mlp=16,
        d_vocab=50,
        context_length=64,
        n_parameters=1000,
        tied_embeddings=True,
        has_mlp_bias=False,
        has_chat_template=False,
        eos_token_ids=(0,),
        bos_token_id=None,
        memory_bytes=4000,
    )


def model_folder(root: Path, name: str = "tiny") -> Path:
    """A folder that looks like a model: config, tokenizer, one safetensors file of 6 numbers."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    return folder


def column(kind: str, values: list[float]) -> Array:
    """An array of the contract from numbers."""
    data = np.asarray(values, dtype=kind)
    return Array(dtype=kind, shape=data.shape, data=data.tobytes())


def node(kind: NodeKind, *, influence: float = 0.0, activation: float = 0.0, layer: int = 0) -> Node:
    """A node of which only kind, influence and activation matter."""
    return Node(
        kind=kind,
        layer=layer,
        position=0,
        feature=0,
        replacement="neurons" if kind is NodeKind.FEATURE else "",
        activation=activation,
        influence=influence,
        effect=0.0,
        label=kind.value,
        promotes=(" a",),
        suppresses=(),
    )


def circuit(nodes: list[Node], edges: list[tuple[int, int, float]]) -> Circuit:
    """A circuit from nodes and (source, target, weight)."""
    sources, targets, weights = (list(each) for each in zip(*edges, strict=True)) if edges else ([], [], [])
    rows = sorted(set(targets))
    return Circuit(
        prompt="x </script>\u2028",
        tokens=(TOKEN,),
        targets=tuple(
            ExplainedTarget(
                kind=TargetKind.LOGIT,
                label=TOKEN.display,
                position=0,
                share=share,
                value=1.0,
                token=TOKEN,
            )
            for share in _shares(nodes)
        ),
        replacement="neurons",
        edge_rule="relp_half",
        nodes=tuple(nodes),
        edges=Edges(
            source=column("int32", sources),
            target=column("int32", targets),
            weight=column("float32", weights),
        ),
        rows=Rows(
            target=column("int32", rows),
            total=column("float32", [2.0] * len(rows)),
            bias=column("float32", [0.5] * len(rows)),
            remainder=column("float32", [0.25] * len(rows)),
        ),
        quality=None,
        figures=CircuitFigures(
            baseline=1.0,
            selected_share=0.9,
            error_share=float("nan"),
            active_features=3,
            selected_features=2,
            seconds=0.1,
            peak_extra_bytes=10,
        ),
        model="tiny",
        weight_hash="w" * 64,
    )


def _shares(nodes: list[Node]) -> list[float]:
    """By probability, as discovery weighs logits; evenly where there is none."""
    sizes = [abs(node.activation) for node in nodes if node.kind is NodeKind.LOGIT]
    total = sum(sizes)
    return [size / total if total else 1 / len(sizes) for size in sizes]


def small_circuit() -> Circuit:
    """Token -> feature -> logit, and an error beside."""
    nodes = [
        node(NodeKind.FEATURE, influence=0.7),
        node(NodeKind.ERROR, influence=0.3),
        node(NodeKind.TOKEN, influence=0.5),
        node(NodeKind.LOGIT, activation=0.8),
    ]
    return circuit(nodes, [(2, 0, 1.0), (0, 3, 2.0), (1, 3, -1.0)])


def later(circuit: Circuit) -> Circuit:
    """A circuit of one token with everything at the second of two: position 0 is never ablated."""
    return replace(
        circuit,
        tokens=2 * circuit.tokens,
        nodes=tuple(replace(node, position=1) for node in circuit.nodes),
        targets=tuple(replace(target, position=1) for target in circuit.targets),
    )


def discover_command() -> DiscoverCircuit:
    """Any discovery."""
    return DiscoverCircuit(prompt="hello", target=LogitTarget(token=" a"))


def plan_for(edit: Edit) -> ExportPlan:
    """A plan without steps."""
    return ExportPlan(
        edit=edit.name,
        edit_hash=edit.content_hash,
        parent_hash=edit.weight_hash,
        steps=(),
        changed_tensors=(),
        untouched_tensors=1,
        config_changes=(),
        size_growth_bytes=0,
        servers=(),
        gates=(),
        plan_hash="p",
    )


def compile_export(command: CompileExport) -> Export:
    """What an engine does: one file in the folder that it is given."""
    folder = Path(command.folder)
    folder.mkdir()
    data = b"x" * 1_200_000
    (folder / "model.safetensors").write_bytes(data)
    (folder / "secret.txt").write_bytes(b"not listed")
    sha256 = hashlib.sha256(data).hexdigest()
    return Export(
        name=command.name,
        folder=command.folder,
        certificate=Certificate(
            edit=command.edit.name,
            edit_hash=command.edit.content_hash,
            plan_hash=command.plan.plan_hash,
            parent_hash=command.edit.weight_hash,
            dtype="float32",
            measurements=(),
            gates=(),
            changed_tensors=(),
            untouched_tensors_verified=1,
            environment={},
            text="t",
            n_tokens=1,
        ),
        files=(ExportedFile(path="model.safetensors", size=len(data), sha256=sha256),),
        signed=False,
    )


SCRIPTS: dict[type, Any] = {
    LoadModel: lambda command: model_info(command.source.name),
    DiscoverCircuit: lambda command: small_circuit(),
    PlanExport: lambda command: plan_for(command.edit),
    CompileExport: compile_export,
}


class FakeWriter:
    """Writes a report's id."""

    def write(self, report: AuditReport, format: ReportFormat) -> tuple[bytes, str]:
        """Return a file."""
        return f"{format} {report.id}".encode(), "text/plain"


class InstantJobs:
    """The job store's interface without durability: runs what it is handed as tasks."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[str]] = []
        self.run: Any = None

    async def open(self, *, run: Any, unfinished: Any, on_refused: Any) -> None:
        """Start what is unfinished."""
        self.run = run
        for operation_id in unfinished:
            await self.submit(operation_id)

    async def submit(self, operation_id: str) -> None:
        """Run an operation."""
        self.tasks.append(asyncio.create_task(self.run(operation_id)))

    async def close(self) -> None:
        """Let what was cancelled end."""
        await asyncio.gather(*self.tasks, return_exceptions=True)


@dataclass
class House:
    """Everything under test, and the fakes around it."""

    root: Path
    clock: FakeClock
    launcher: FakeLauncher
    host: FakeAuditorHost
    artifacts: ArtifactStore
    models: Models
    circuits: Circuits
    circuit_verifications: CircuitVerifications
    dataset_circuits: DatasetCircuits
    circuit_views: CircuitViews
    circuit_annotations: CircuitAnnotations
    proposals: Proposals
    edits: Edits
    edit_stacks: EditStacks
    live_edits: LiveEdits
    edit_evaluations: EditEvaluations
    exports: Exports
    audits: Audits
    replacements: Replacements
    evaluations: Evaluations
    fits: Fits
    feature_sets: FeatureSets
    feature_indexes: FeatureIndexes
    features: Features
    labels: Labels
    journal: Journal
    operations: Operations


def house(
    root: Path,
    scripts: Mapping[type, Any] | None = None,
    *,
    jobs: Any = None,
    identity_signer: IdentitySigner | None = None,
) -> House:
    """Build it; `root/models` is the model root and holds `tiny`, `root/published` takes exports.

    `root/replacements` is the replacement root, and empty.
    """
    if not (root / "models" / "tiny").exists():
        model_folder(root / "models")
    clock, launcher = FakeClock(), FakeLauncher({**SCRIPTS, **(scripts or {})})
    state, host = root / "state", FakeAuditorHost()
    artifacts = ArtifactStore((root / "artifacts").as_uri(), clock=clock)
    models = Models(
        launcher=launcher,
        roots=(root / "models",),
        export_root=root / "published",
        remembered=state / "models",
        memory_budget_bytes=2 << 30,
    )
    (root / "replacements").mkdir(exist_ok=True)
    sets = ReplacementRoots((root / "replacements",))
    replacements = Replacements(models, sets)
    feature_sets = FeatureSets(models, replacements)
    edits = Edits(state / "edits", models, feature_sets, clock=clock)
    circuits, proposals = Circuits(state / "circuits", artifacts, clock=clock), Proposals(state / "proposals")
    stacks = EditStacks(edits, models, replacements)
    live_edits = LiveEdits(state / "live-edits", stacks, clock=clock)
    edit_evaluations = EditEvaluations(state / "edit-evaluations", edits=edits, models=models, clock=clock)
    exports = Exports(
        state / "exports",
        export_root=root / "published",
        models=models,
        edits=edits,
        signing_key=None,
        identity_signer=identity_signer,
        clock=clock,
    )
    audits = Audits(
        state / "audits", models=models, host=host, writer=FakeWriter(), artifacts=artifacts, clock=clock
    )
    evaluations = Evaluations(
        state / "evaluations", models=models, replacements=replacements, artifacts=artifacts, clock=clock
    )
    verifications = CircuitVerifications(
        state / "circuit-verifications",
        circuits=circuits,
        models=models,
        replacements=replacements,
        clock=clock,
    )
    dataset_circuits = DatasetCircuits(
        state / "dataset-circuits", models=models, replacements=replacements, clock=clock
    )
    fits = Fits(
        state / "fits", work=state / "fitting", roots=sets, models=models, artifacts=artifacts, clock=clock
    )
    indexes = FeatureIndexes(
        state / "feature-indexes", models=models, sets=feature_sets, artifacts=artifacts, clock=clock
    )
    labels = Labels(state / "labels.sqlite", clock=clock)
    removals = SpuriousRemovals(
        state / "spurious-removals",
        models=models,
        edits=edits,
        sets=feature_sets,
        artifacts=artifacts,
        clock=clock,
    )
    journal = Journal(state / "operations", clock)
    operations = Operations(
        jobs=jobs or InstantJobs(),
        journal=journal,
        requests=ArtifactStore((state / "requests").as_uri(), clock=clock),
        work=Work(
            models=models,
            circuits=circuits,
            circuit_verifications=verifications,
            dataset_circuits=dataset_circuits,
            global_circuits=GlobalCircuits(circuits, models=models, replacements=replacements),
            proposals=proposals,
            edit_evaluations=edit_evaluations,
            exports=exports,
            audits=audits,
            replacements=replacements,
            evaluations=evaluations,
            fits=fits,
            feature_indexes=indexes,
            spurious_removals=removals,
            classifiers=Classifiers(
                state / "classifiers",
                export_root=root / "published",
                models=models,
                edits=edits,
                exports=exports,
                removals=removals,
            ),
        ),
        clock=clock,
    )
    return House(
        circuit_views=CircuitViews(circuits, artifacts),
        circuit_annotations=CircuitAnnotations(circuits, models, clock=clock),
        root=root,
        clock=clock,
        launcher=launcher,
        host=host,
        artifacts=artifacts,
        models=models,
        circuits=circuits,
        circuit_verifications=verifications,
        dataset_circuits=dataset_circuits,
        proposals=proposals,
        edits=edits,
        edit_stacks=stacks,
        live_edits=live_edits,
        edit_evaluations=edit_evaluations,
        exports=exports,
        audits=audits,
        replacements=replacements,
        evaluations=evaluations,
        fits=fits,
        feature_sets=feature_sets,
        feature_indexes=indexes,
        features=Features(
            models=models, sets=feature_sets, indexes=indexes, labels=labels, artifacts=artifacts
        ),
        labels=labels,
        journal=journal,
        operations=operations,
    )
