"""A parent of eight shards is exported with no more in memory than a shard and a tensor."""

from __future__ import annotations

import json
import tracemalloc
from functools import cache
from itertools import accumulate

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.builders import tiny_model, tiny_tokenizer
from tests.resident_sets import resident_set
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import direction, neuron
from tests.unit.engine.weights.folders import compiled, feature, written
from trephine.domain.interventions import Ablate, ProjectOut, Scale
from trephine.domain.sites import Site, SiteKind
from trephine.engine.certificates import certifier
from trephine.engine.certificates.certification import change_records, change_tensors
from trephine.engine.exports import reshaping
from trephine.engine.exports.reshaping import write_weights
from trephine.engine.models.shards import TensorEntry, read_entries
from trephine.engine.weights import tensors
from trephine.engine.weights.assembly import Assembly
from trephine.engine.weights.linear import Affinity
from trephine.engine.weights.tensors import TensorChange, carried_out

V = torch.randn(64, generator=torch.Generator().manual_seed(3)).tolist()
EDITS = {
    "neuron": (neuron(0, 3, Ablate()),),
    "graft": (feature(0, 3, Ablate()),),
    "embedding": (direction(SiteKind.EMBED, 0, V, ProjectOut()),),
    "projection": (direction(SiteKind.MLP_OUT, 0, V, ProjectOut()),),
    "small delta": (direction(SiteKind.MLP_OUT, 0, V, Scale(factor=0.99)),),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@torch.inference_mode()
def test_at_most_a_shard_and_a_tensor_are_in_memory(edit, dtype, tmp_path, eight_shards):
    """Bytes held at once over a write of every shard: what was read, and every tensor that is computed."""
    hosted = eight_shards(dtype, n_layers=8)
    entries = read_entries(hosted.folder)
    shards = {entry.file for entry in entries.values()}
    largest = max((hosted.folder / file).stat().st_size for file in shards)
    tensor = max(entry.end - entry.start for entry in entries.values())
    program = compiled(hosted, edit)
    folder = tmp_path / "exported"
    folder.mkdir()
    for path in hosted.folder.iterdir():
        if path.name not in reshaping.reshaped_files(program.changes):
            (folder / path.name).write_bytes(path.read_bytes())

    def write():
        for _ in write_weights(hosted.folder, folder, entries, program):
            pass

    read, computed = peak_of_python(write), peak_of_torch(write)
    assert read > 0
    assert computed > 0
    assert read + computed <= largest + tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@torch.inference_mode()
def test_the_certifier_computes_in_less_than_half_a_tensor(edit, dtype, tmp_path, eight_shards):
    """It maps a shard of each folder, whose pages the system may take back, and computes in blocks."""
    hosted = eight_shards(dtype, n_layers=3)  # each tensor is 64 blocks, whose events take longest
    entries = read_entries(hosted.folder)
    tensor = max(entry.end - entry.start for entry in entries.values())
    program = compiled(hosted, edit)
    folder = written(hosted, program, tmp_path / "exported")
    save_file(change_tensors(program), tmp_path / "changes.safetensors")
    folders = {"parent": str(hosted.folder), "exported": str(folder), "evidence": str(tmp_path)}
    request = json.loads(json.dumps(folders | {"changes": change_records(program)}))
    found = {}
    mapped = {
        path.stat().st_size for base in (hosted.folder, tmp_path) for path in base.rglob("*.safetensors")
    }
    computed = peak_of_torch(lambda: found.update(certifier.compare_weights(request)), but=mapped)
    assert found["untouched_tensors_verified"] > 0
    assert {name for name, count in found.items() if count} == {"untouched_tensors_verified"}
    assert 0 < computed <= tensor / 2


@pytest.fixture(scope="module")
def eight_shards(tmp_path_factory):
    """Host a model whose files are at least eight, with a set of features, once; tests only read it."""

    @cache
    def of(dtype, *, n_layers):
        folder = tmp_path_factory.mktemp("parent")
        model = tiny_model("llama", n_layers=n_layers, d_model=64, dtype=dtype)
        total = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(folder, max_shard_size=total // 7)
        tiny_tokenizer().save_pretrained(folder)
        hosted = hosted_in(folder)
        resident_set(hosted, "jumprelu")
        assert len({entry.file for entry in read_entries(folder).values()}) >= 8
        return hosted

    return of


def peak_of_python(work):
    """Return the most bytes that the interpreter holds at once; what files hold is read into its memory."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def peak_of_torch(work, but=frozenset()):
    """Return the most bytes that torch allocates at once, temporaries included, files of some sizes left out.

    Torch counts a mapped file as if all of it were in memory.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = [e for e in events if e.device_type() == DeviceType.CPU]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(size for size in sizes if abs(size) not in but))


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_change_no_bit(size, axis, monkeypatch):
    """Scaled slices, a gain, a sum, and draws that go on from block to block, as in one piece."""
    draw = torch.Generator().manual_seed(0)
    parent = torch.randn(200, 48, generator=draw).to(torch.bfloat16)
    left, right = (torch.randn(n, generator=draw, dtype=torch.float64) for n in ((200, 3), (3, 48)))
    change = TensorChange(
        name="w",
        file="f",
        dtype="BF16",
        layer=0,
        entry=TensorEntry(name="w", file="f", dtype="BF16", shape=(200, 48), start=0, end=19_200),
        axis=axis,
        factors={5: 0.0, 17: -0.3},
        low_rank=(size * left, right),
    )
    found = []
    for blocks in (1, 7, 200):
        monkeypatch.setattr(tensors, "_BLOCKS", blocks)
        found.append(carried_out(change, parent.clone(), torch.bfloat16))
    assert all(torch.equal(found[0], other) for other in found[1:])
    nearest = (tensors.scale_slices(parent.double(), change.factors, axis=axis) + size * left @ right).to(
        torch.bfloat16
    )
    assert torch.equal(found[0], nearest) == (size == 1.0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.inference_mode()
def test_planning_a_map_of_the_embeddings_copies_none_of_them(family, tmp_path):
    """A direction removed from a large vocabulary: blocks of rows in float64, and what is kept of it."""
    model = tiny_model(family, d_model=64)
    model.resize_token_embeddings(20_000)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    hosted = hosted_in(tmp_path)
    assembly = Assembly(hosted, read_entries(tmp_path), mlp_biases=False)
    unit = torch.tensor(V).double()
    unit /= unit.norm()
    removal = Affinity(left=-unit[:, None], right=unit[None], offset=torch.zeros(64).double(), gain=1.0)
    embed = Site(kind=SiteKind.EMBED, layer=0)
    peak = peak_of_torch(lambda: assembly.write_maps({embed: removal}, {}))
    table = hosted.architecture.embedding.weight
    assert 0 < peak < 0.2 * table.numel() * table.element_size()
    change = next(c for c in assembly.changes() if c.entry is not None and c.entry.shape[0] == 20_000)
    left, right = change.low_rank
    torch.testing.assert_close(left @ right, -(table.double() @ unit)[:, None] * unit)
