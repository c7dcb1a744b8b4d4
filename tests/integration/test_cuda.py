"""A GPU gives what the CPU gives: every capability of the engine, on tiny models on both devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.builders import FAMILIES, tiny_folder, tiny_hosted
from tests.dataset_examples import request as dataset_request
from tests.replacement_sets import write_saes, write_transcoders
from tests.resident_sets import KINDS, NAME, resident_set
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.fitting.fits import fit, hosted_from_folder, model_folder, text
from tests.unit.engine.fitting.fits import request as fit_request
from tests.unit.engine.graphs import test_laws_of_sets as laws
from tests.unit.engine.interventions import neuron
from tests.unit.engine.test_law7_rows import ragged
from tests.unit.engine.weights.folders import compiled, written
from trephine.domain.ablation import LogitTarget, MeasureAblation
from trephine.domain.activations import RankActivity, ReadActivations
from trephine.domain.arrays import Array
from trephine.domain.attention import TraceAttention
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.features import RankByToken, ViewDecoder
from trephine.domain.fitting import EndToEnd
from trephine.domain.generation import Generate, Row, Sampling, Score, ScoredRow
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Scale, SetTo
from trephine.domain.models import LoadModel, ModelSource
from trephine.domain.replacements import EvaluateReplacementSet, LoadReplacementSet, ReplacementSource
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.verification import VerificationOptions, VerifyCircuit
from trephine.engine.attribution.places import clean_value
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.process.handlers import HANDLERS
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.rows import RowInput, RowsOutput, run_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

DEVICES = ("cpu", "cuda")
PROMPT = "When Mary and John went to the store John gave a drink to"
SETS = [(family, kind) for family in FAMILIES for kind in (NEURONS, "jumprelu")]
SETS += [("llama", kind) for kind in KINDS if kind != "jumprelu"]
"""Every family with neurons and transcoders, and one family with every kind of set."""
NOT_COMPARED = {"seconds", "device", "peak_extra_bytes", "caveats", "how", "memory_bytes"}
"""Fields that differ between devices, or hold figures in words."""


@pytest.fixture(autouse=True)
def _plain_float32() -> Iterator[None]:
    """TensorFloat-32 has 10 bits of mantissa; everything here is compared to 1e-4 and better."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


@cache
def hosted(device: str, family: str = "llama", kind: str = NEURONS) -> HostedModel:
    """Host a tiny model on a device, with a set of some kind beside it."""
    found = tiny_hosted(family, device=device)
    if kind != NEURONS:
        resident_set(found, kind)
    return found


def run(on: HostedModel, command: Any) -> Any:
    """Carry a command out as the engine does."""
    return finish(HANDLERS[type(command)](Session(hosted=on), command))


def differences(first: Any, second: Any, where: str = "", *, within: float) -> Iterator[str]:
    """List where two results differ: numbers by more than `within` of the largest beside them."""
    if is_dataclass(first) and not isinstance(first, Array):
        for name in (field.name for field in fields(first) if field.name not in NOT_COMPARED):
            yield from differences(
                getattr(first, name), getattr(second, name), f"{where}.{name}", within=within
            )
    elif isinstance(first, Array) or (isinstance(first, tuple) and first and isinstance(first[0], float)):
        one, two = numbers(first), numbers(second)
        if one.shape != two.shape or not np.allclose(
            one, two, rtol=0, atol=within * float(np.abs(one).max(initial=1e-3)), equal_nan=True
        ):
            yield f"{where}: {one.tolist()[:8]} and {two.tolist()[:8]}"
    elif isinstance(first, tuple):
        if len(first) != len(second):
            yield f"{where}: {len(first)} and {len(second)} entries"
        for number, (one, two) in enumerate(zip(first, second, strict=False)):
            yield from differences(one, two, f"{where}[{number}]", within=within)
    elif isinstance(first, float) and isinstance(second, float):
        if first != pytest.approx(second, rel=within, abs=within, nan_ok=True):
            yield f"{where}: {first} and {second}"
    elif first != second:
        yield f"{where}: {first!r} and {second!r}"


def numbers(values: Array | tuple[float, ...]) -> np.ndarray:
    """Read what an answer holds as numbers."""
    if isinstance(values, Array):
        return np.frombuffer(values.data, values.dtype).reshape(values.shape)
    return np.array(values)


def same(make: Callable[[str], Any], within: float = 1e-4) -> Any:
    """Make a result on both devices and compare; return the GPU's."""
    cpu, gpu = (make(device) for device in DEVICES)
    assert not list(differences(cpu, gpu, within=within))
    return gpu


# --- loading and passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_loaded_onto_the_device(family: str, tmp_path: Path):
    """The weights' hash does not depend on where they lie, nor do the logits."""
    folder = tiny_folder(family, tmp_path / "model")

    def load(device: str) -> Session:
        session = Session()
        source = ModelSource(name="tiny", folder=str(folder), device=device)
        finish(HANDLERS[LoadModel](session, LoadModel(source=source)))
        return session

    cpu, gpu = (load(device).require_model() for device in DEVICES)
    assert gpu.info.device == "cuda:0"
    assert gpu.info.weight_hash == cpu.info.weight_hash
    assert all(parameter.is_cuda for parameter in gpu.model.parameters())
    logits = [run_rows(on, [RowInput(on.encode(PROMPT))]).logits[0].cpu() for on in (cpu, gpu)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("writer", [write_transcoders, write_saes])
def test_a_set_is_admitted_and_paged_onto_the_device(writer: Callable[..., Path], tmp_path: Path):
    """Its layers lie beside the model; the probe finds on the GPU what it finds on the CPU."""
    folder = writer(tiny_hosted("llama"), tmp_path / "set")
    command = LoadReplacementSet(source=ReplacementSource(name="other", folder=str(folder)))
    loaded = {device: tiny_hosted("llama", device=device) for device in DEVICES}
    same(lambda device: run(loaded[device], command).admission, within=1e-3)
    with opened(loaded["cuda"], "other", [0, 1, 2]) as layers:
        assert {layer.encoder.W_enc.device.type for layer in layers.values()} == {"cuda"}


def passes(make: Callable[[HostedModel], list[RowInput]], *of: str) -> None:
    """Compare logits and echoes of rows on both devices."""
    cpu, gpu = (run_rows(hosted(device, *of), make(hosted(device, *of))) for device in DEVICES)
    agree(cpu, gpu)


def agree(cpu: RowsOutput, gpu: RowsOutput) -> None:
    """Compare two batches row by row."""
    for one, two in zip(cpu.logits, gpu.logits, strict=True):
        torch.testing.assert_close(one, two.cpu(), rtol=0, atol=1e-4)
    assert not list(differences(tuple(cpu.applied), tuple(gpu.applied), within=1e-4))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_their_own_interventions(family: str):
    """Six users' rows in one batch: ablated, scaled, steered, projected out, resampled, patterns frozen."""
    passes(ragged, family)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_sets_are_changed(kind: str):
    """One row without a feature, one with a feature held at 3, one plain."""

    def rows(on: HostedModel) -> list[RowInput]:
        ids = on.encode(PROMPT)
        layer = on.replacements[NAME].covered[0]
        return [
            RowInput(ids, (feature(layer, 3, Ablate()), feature(layer, 7, Ablate()))),
            RowInput(ids[:5], (feature(layer, 11, SetTo(value=3.0)),)),
            RowInput(ids[:8]),
        ]

    passes(rows, "llama", kind)


def feature(layer: int, index: int, operation: Any) -> Intervention:
    """Change a feature of the set."""
    ref = FeatureRef(replacement=NAME, layer=layer, index=index)
    return Intervention(target=FeatureTarget(feature=ref), operation=operation)


# --- commands -----------------------------------------------------------------------------------------

TARGET = LogitTarget(token=" Mary", against=" John")
PLAN = (neuron(0, 3, Ablate()), neuron(1, 5, Scale(factor=0.37)), neuron(2, 60, Ablate()))
ROWS = tuple(
    Row(prompt=prompt, interventions=plan)
    for prompt, plan in ((PROMPT, PLAN), (" the cat", ()), ("The dog gave", PLAN[:1]))
)
COMMANDS: dict[str, tuple[str, Any]] = {
    "generation": (NEURONS, Generate(rows=ROWS, max_new_tokens=12)),
    "sampling": (
        NEURONS,
        Generate(rows=ROWS, max_new_tokens=8, sampling=Sampling(temperature=0.8, top_p=0.9, seed=3)),
    ),
    "scoring": (
        NEURONS,
        Score(
            rows=tuple(
                ScoredRow(prompt=row.prompt, continuation=" Mary", interventions=row.interventions)
                for row in ROWS
            )
        ),
    ),
    "ablation": (NEURONS, MeasureAblation(prompt=PROMPT, target=TARGET, interventions=PLAN)),
    "activations": (NEURONS, ReadActivations(text=PROMPT, features=(FeatureRef(layer=1, index=4),))),
    "activations of a set": (
        "jumprelu",
        ReadActivations(text=PROMPT, features=(FeatureRef(replacement=NAME, layer=1, index=4),)),
    ),
    "activity": (NEURONS, RankActivity(text=PROMPT)),
    "tokens' features": ("jumprelu", RankByToken(text=PROMPT, replacement=NAME, count=1)),
    "a decoder": ("jumprelu", ViewDecoder(feature=FeatureRef(replacement=NAME, layer=1, index=2), tokens=3)),
    "attention": ("skip", TraceAttention(prompt=PROMPT, layer=2, head=3, replacement=NAME)),
    "evaluation": (
        "jumprelu",
        EvaluateReplacementSet(
            name=NAME, text="", text_name="built in", max_contexts=4, bootstrap=100, perturbations=4
        ),
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_the_same(name: str):
    """Everything beside discovery that a session carries out."""
    kind, command = COMMANDS[name]
    same(lambda device: run(hosted(device, "llama", kind), command), within=2e-3)


# --- circuits -----------------------------------------------------------------------------------------

DISCOVERY = DiscoverCircuit(
    prompt=PROMPT,
    target=TARGET,
    max_feature_nodes=40,
    edge_mass=1.0,
    max_edges_per_row=1 << 20,
    verify_nodes=8,
)


@cache
def discovered(device: str, family: str, kind: str, **changes: Any) -> Circuit:
    """Discover a circuit once per device."""
    named = NEURONS if kind == NEURONS else NAME
    found: Circuit = run(hosted(device, family, kind), replace(DISCOVERY, replacement=named, **changes))
    return found


def matrix(circuit: Circuit) -> np.ndarray:
    """Lay the edges out, rows are targets."""
    dense = np.zeros((len(circuit.nodes), len(circuit.nodes)))
    edges = circuit.edges
    dense[numbers(edges.target), numbers(edges.source)] = numbers(edges.weight)
    return dense


def check_graphs(cpu: Circuit, gpu: Circuit) -> None:
    """The same nodes, and edges within 1e-4 of their row's largest."""
    named = [[(n.kind, n.layer, n.position, n.feature) for n in found.nodes] for found in (cpu, gpu)]
    assert named[0] == named[1]
    one, two = matrix(cpu), matrix(gpu)
    largest = np.abs(one).max(1, keepdims=True)
    assert (np.abs(one - two) <= 1e-4 * largest).all()
    assert largest.max() > 0
    assert not list(differences(cpu.rows, gpu.rows, within=1e-4))
    assert not list(differences(cpu.nodes, gpu.nodes, within=1e-3))
    assert not list(differences(cpu.quality, gpu.quality, within=2e-3))
    assert not list(differences(cpu.figures, gpu.figures, within=1e-3))


@pytest.mark.parametrize(("family", "kind"), SETS)
def test_graphs_are_the_cpus(family: str, kind: str):
    """Neurons and transcoders of every family; cross-layer transcoders, SAEs and mixtures of one."""
    check_graphs(*(discovered(device, family, kind) for device in DEVICES))


@pytest.mark.parametrize("kind", [NEURONS, "skip", "clt"])
def test_hierarchical_graphs_are_the_cpus(kind: str):
    """Features of small attribution stop the backward pass."""
    check_graphs(*(discovered(device, "llama", kind, min_attribution=0.02) for device in DEVICES))


def set_cases() -> list[tuple[str, str]]:
    """List what the laws are checked on: one family with every kind, the others with one each."""
    others = [(family, "mixed") for family in FAMILIES if family != "llama"]
    return [*(("llama", kind) for kind in KINDS), *others]


@pytest.mark.parametrize(("family", "kind"), set_cases())
def test_laws_2_to_4_hold_on_the_device(family: str, kind: str):
    """Parts sum to the clean value; rows sum to what they explain; edges are interventions."""
    on, operators, active = laws.prepared(family, kind, device="cuda")
    for layer in active.layers:
        with opened(on, layer.ref.replacement, [layer.info.layer]) as resident:
            found = resident[layer.info.layer]
        code = found.encode(clean_value(operators, layer.info.site_in))
        assert torch.equal(code.active[layer.position, layer.index], torch.ones_like(layer.index).bool())
    check_sums(on, operators, active)
    oracle, checked = laws.oracle_of(on, active), 0
    for own, targets, sums in laws.swept(on, operators, active, laws.some_cells(active, 3)):
        scale = sums.mass + sums.bias.abs()
        assert ((sums.total - targets.total).abs() / scale).max() < laws.SUMS
        for number, cell in enumerate(own.tolist()):
            checked += laws.check_row(on, operators, active, oracle, targets, sums, number, cell, 1e-4)
    assert checked >= 100


def check_sums(on: HostedModel, operators: Any, active: Any) -> None:
    """Law 2: at every site features, constants, skip path and error are the model's own activation."""
    for site in active.error_sites:
        parts = active.errors[site] + active.constants[site]
        for layer in active.writers(site):
            with opened(on, layer.ref.replacement, [layer.info.layer]) as resident:
                found = resident[layer.info.layer]
            decoders = found.decoders(layer.index.tolist(), site).to(parts.dtype)
            parts = parts.index_add(0, layer.position, decoders * layer.written[:, None].to(parts.dtype))
            matrix = found.skip_matrix() if site == layer.info.sites_out[0] else None
            if matrix is not None:
                parts = parts + clean_value(operators, layer.info.site_in) @ matrix.T.to(parts.dtype)
        torch.testing.assert_close(parts, clean_value(operators, site), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [NEURONS, "jumprelu", "clt"])
def test_edges_are_explained(kind: str):
    """Factors, heads and paths of the heaviest edges."""

    def explain(device: str) -> Any:
        circuit = discovered(device, "llama", kind)
        weights = np.abs(numbers(circuit.edges.weight))
        ends = [numbers(circuit.edges.source), numbers(circuit.edges.target)]
        chosen = np.argsort(-weights, kind="stable")[:4]
        edges = tuple((int(ends[0][n]), int(ends[1][n])) for n in chosen)
        return run(hosted(device, "llama", kind), ExplainEdges(circuit=circuit, edges=edges, paths=2))

    same(explain, within=1e-3)


@pytest.mark.parametrize("kind", [NEURONS, "relu"])
def test_verification_says_the_same(kind: str):
    """Single and group ablations, necessity and sufficiency, the worst mask."""
    options = VerificationOptions(nodes=100, groups=4, depth_nodes=6, adversary_steps=3, bootstrap=100)

    def verify(device: str) -> Any:
        circuit = discovered(device, "llama", kind)
        features = [n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE]
        command = VerifyCircuit(circuit=circuit, kept=tuple(features[:20]), options=options)
        return run(hosted(device, "llama", kind), command)

    report = same(lambda device: verify(device).given.faithfulness, within=2e-3)
    assert report


@pytest.mark.parametrize("estimator", list(Estimator))
def test_dataset_circuits_are_the_cpus(estimator: Estimator):
    """Nodes, effects, faithfulness and the random circuits beside it."""
    same(lambda device: run(hosted(device), dataset_request(estimator=estimator)).circuits, within=2e-3)


# --- weights ------------------------------------------------------------------------------------------


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a checkpoint."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def check_checkpoints(cpu: Path, gpu: Path, within: float) -> None:
    """Two folders hold the same weights."""
    one, two = tensors(cpu), tensors(gpu)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=within, atol=within, msg=name)


def test_an_export_of_neurons_is_the_cpus(tmp_path: Path):
    """Planned, certified and written from a model on the device."""
    folder = tiny_folder("llama", tmp_path / "parent")
    for device in DEVICES:
        on = hosted_in(folder, device=device)
        made = exported(on, edit_of(on, *PLAN), tmp_path / device)
        assert made.files
    check_checkpoints(*(tmp_path / device for device in DEVICES), within=0)


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "clt"])
def test_an_export_of_features_is_the_cpus(kind: str, tmp_path: Path):
    """Grafted where neurons can compute it, fitted by ridge regression where not."""
    folder = tiny_folder("llama", tmp_path / "parent")
    plan = tuple(feature(layer, index, Ablate()) for layer, index in ((0, 3), (1, 7), (1, 9)))
    for device in DEVICES:
        on = hosted_in(folder, device=device)
        resident_set(on, kind)
        written(on, compiled(on, plan), tmp_path / device)
    check_checkpoints(*(tmp_path / device for device in DEVICES), within=1e-4)


# --- fitting ------------------------------------------------------------------------------------------


@torch.inference_mode(False)
def test_a_fit_learns_on_the_device(tmp_path: Path):
    """Local and end-to-end phase: FVU and KL fall, and what was fitted is well below the mean."""
    on = hosted_from_folder(model_folder(tmp_path / "model"), "cuda")
    corpus = tmp_path / "words.txt"
    corpus.write_text(text(20_000))
    report = fit(fit_request(tmp_path / "set", on, corpus, end_to_end=EndToEnd(tokens=12_000, lr=1e-3)), on)
    for layer in report.layers:
        points = [p for p in report.curve if p.phase == "local" and p.layer == layer.layer]
        assert points[-1].fvu < points[0].fvu
        assert layer.fvu < 0.6
    kl = [point.kl for point in report.curve if point.phase == "end_to_end"]
    assert kl[-1] < kl[0]
    assert report.gap is not None
