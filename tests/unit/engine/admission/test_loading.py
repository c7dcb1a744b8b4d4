"""Loading, unloading and listing replacement sets in an engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.replacement_sets import write_saes, write_transcoders
from trephine.domain.errors import (
    AdmissionFailedError,
    AlreadyExistsError,
    BrokenReplacementError,
    InvalidRequestError,
    OverBudgetError,
    ReplacementNotFoundError,
)
from trephine.domain.models import DescribeCapabilities
from trephine.domain.replacements import (
    LayerKind,
    ListReplacementSets,
    LoadReplacementSet,
    ReplacementSource,
    UnloadReplacementSet,
)
from trephine.domain.sites import SiteKind
from trephine.engine.admission.loading import (
    list_replacement_sets,
    load_replacement_set,
    unload_replacement_set,
)
from trephine.engine.models.capabilities import describe_capabilities
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened


@pytest.fixture
def session():
    return Session(hosted=tiny_hosted("llama"))


def load(session, folder, name="tc", **options: Any):
    source = ReplacementSource(name=name, folder=str(folder), **options)
    return finish(load_replacement_set(session, LoadReplacementSet(source=source)))


def listed(session):
    return finish(list_replacement_sets(session, ListReplacementSets())).sets


def claim(folder, layer, l0):
    """Change what a layer's file claims."""
    path = folder / f"layer_{layer}" / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["l0"] = l0
    path.write_text(json.dumps(config))


def test_a_loaded_set_is_listed_opened_and_forgotten(session, tmp_path):
    """Load, list, use, unload; afterwards its name is unknown."""
    info = load(session, write_transcoders(session.hosted, tmp_path))
    assert (info.name, info.degraded, len(info.layers)) == ("tc", False, 3)
    assert info.weight_hash == session.hosted.info.weight_hash
    assert info.admission.passed
    assert info.residency.resident_bytes == 0
    with opened(session.hosted, "tc", [1]) as layers:
        assert layers[1].info.layer == 1
    (seen,) = listed(session)
    assert seen.residency.loads == 1
    assert seen.content_hash == info.content_hash
    gone = finish(unload_replacement_set(session, UnloadReplacementSet(name="tc")))
    assert gone.name == "tc"
    assert listed(session) == ()
    with pytest.raises(ReplacementNotFoundError):
        finish(unload_replacement_set(session, UnloadReplacementSet(name="tc")))


def test_loading_again_is_no_work_and_another_set_needs_another_name(session, tmp_path):
    """The same content under the same name answers at once; other content is refused, whatever its size."""
    folder = write_transcoders(session.hosted, tmp_path / "a")
    first = load(session, folder)
    loaded = session.hosted.replacements["tc"]
    assert load(session, folder) == first
    assert session.hosted.replacements["tc"] is loaded
    other = write_transcoders(session.hosted, tmp_path / "b", seed=5)
    with pytest.raises(AlreadyExistsError, match="other content"):
        load(session, other)
    assert load(session, other, name="b").content_hash != first.content_hash
    assert [info.name for info in listed(session)] == ["b", "tc"]


def test_the_neurons_name_is_reserved(session, tmp_path):
    """A set called `neurons` would hide the model's own."""
    with pytest.raises(InvalidRequestError, match="always there"):
        load(session, write_transcoders(session.hosted, tmp_path), name="neurons")


def test_partial_coverage_and_mixed_kinds_are_legal(session, tmp_path):
    """A transcoder of layer 0 and an SAE of layer 2 are one set; layer 1 stays the model's own."""
    write_transcoders(session.hosted, tmp_path, layers=[0])
    write_saes(session.hosted, tmp_path, layers=[2], kind=SiteKind.RESID_POST)
    info = load(session, tmp_path)
    assert [(layer.layer, layer.kind) for layer in info.layers] == [
        (0, LayerKind.TRANSCODER),
        (2, LayerKind.SAE),
    ]


def test_a_set_that_fails_is_not_registered_unless_accepted(session, tmp_path):
    """The refusal leaves nothing; accepted, the set carries its flag, and the capabilities show it."""
    folder = write_transcoders(session.hosted, tmp_path)
    claim(folder, 1, 1.0)
    with pytest.raises(AdmissionFailedError, match="layer 1"):
        load(session, folder)
    assert listed(session) == ()
    info = load(session, folder, accept_degraded=True)
    assert info.degraded
    assert not info.admission.passed
    described = finish(describe_capabilities(session, DescribeCapabilities()))
    (note,) = [c.note for c in described.capabilities if c.name == "replacements.tc"]
    assert "degraded" in note


def test_a_layer_larger_than_the_budget_is_refused_before_it_is_read(session, tmp_path):
    """A budget of 1,000 bytes holds no layer; it says which one and how much it takes."""
    with pytest.raises(OverBudgetError, match="alone takes"):
        load(session, write_transcoders(session.hosted, tmp_path), memory_budget_bytes=1000)


def test_a_small_budget_loads_and_pages(session, tmp_path):
    """A set three times larger than its budget is admitted and stays within it."""
    folder = write_transcoders(session.hosted, tmp_path)
    size = load(session, folder, name="whole").layers[0].memory_bytes
    info = load(session, folder, name="paged", memory_budget_bytes=size)
    assert info.residency.total_bytes == 3 * size
    # What admission held counts, though nothing has been used yet.
    assert (info.residency.peak_bytes, info.residency.resident_bytes) == (size, 0)
    for layer in (0, 1, 2, 0):
        with opened(session.hosted, "paged", [layer]):
            pass
    seen = session.hosted.replacements["paged"].info.residency
    assert (seen.peak_bytes, seen.loads, seen.evictions) == (size, 4, 3)


def test_capabilities_tell_where_weights_are_in_figures(session, tmp_path):
    """Budget, resident, peak, pinned, paged in and out, per set; what is in use counts as pinned."""
    folder = write_transcoders(session.hosted, tmp_path)
    size = load(session, folder, name="whole").layers[0].memory_bytes
    load(session, folder, name="paged", memory_budget_bytes=2 * size)
    with opened(session.hosted, "paged", [2]):
        pass
    with opened(session.hosted, "paged", [0, 1]):
        described = finish(describe_capabilities(session, DescribeCapabilities()))
    paged, whole = described.replacements
    assert (paged.name, paged.layers, paged.degraded) == ("paged", 3, False)
    where = paged.residency
    assert (where.total_bytes, where.budget_bytes) == (3 * size, 2 * size)
    assert (where.resident_bytes, where.peak_bytes, where.pinned_bytes) == (2 * size, 2 * size, 2 * size)
    assert where.loads - where.evictions == 2
    assert where.evictions >= 1
    assert whole.residency.pinned_bytes == 0
    after = finish(describe_capabilities(session, DescribeCapabilities())).replacements[0]
    assert after.residency.pinned_bytes == 0


def test_a_file_that_changes_after_loading_is_noticed(session, tmp_path):
    """Other weights in the folder than those admitted are an error at the next read, not a silent change."""
    folder = write_transcoders(session.hosted, tmp_path)
    load(session, folder)
    write_transcoders(session.hosted, tmp_path, layers=[1], seed=9)
    with pytest.raises(BrokenReplacementError, match="changed on disk"), opened(session.hosted, "tc", [1]):
        pass


def test_every_quantum_is_one_context_or_one_layer(session, tmp_path):
    """Loading yields often: at least once per layer hashed, context read and layer probed."""
    source = ReplacementSource(name="tc", folder=str(write_transcoders(session.hosted, tmp_path)))
    events = list(load_replacement_set(session, LoadReplacementSet(source=source)))
    stages = [event.stage for event in events if event is not None]
    assert stages.count("hash") == 3
    assert stages.count("probe") == 3
    assert stages.count("read") > 5


def test_a_set_of_another_width_names_the_model(session, tmp_path):
    """Transcoders of a model twice as wide are refused, naming both widths."""
    wide = tiny_hosted("llama", d_model=64)
    with pytest.raises(BrokenReplacementError, match=r"64.*32"):
        load(session, write_transcoders(wide, tmp_path))


def test_a_loaded_set_reads_as_its_file_says(session, tmp_path):
    """What is opened encodes with the file's own weights."""
    from safetensors.torch import load_file

    folder = write_transcoders(session.hosted, tmp_path)
    load(session, folder)
    tensors = load_file(folder / "layer_2" / "sae_weights.safetensors")
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    with opened(session.hosted, "tc", [2]) as layers:
        assert torch.allclose(layers[2].encode(x).pre, x @ tensors["W_enc"] + tensors["b_enc"], atol=1e-5)


def test_an_admission_is_taken_over_only_where_nothing_has_changed(session, tmp_path):
    """The same content on the same weights is not probed again; other weights, content or text are."""
    folder = write_transcoders(session.require_model(), tmp_path / "tc", layers=(0, 1))
    first = load(session, folder)

    def stages(admitted):
        finish(unload_replacement_set(session, UnloadReplacementSet(name="tc")))
        source = ReplacementSource(name="tc", folder=str(folder))
        steps = load_replacement_set(session, LoadReplacementSet(source=source, admitted=admitted))
        seen = {step.stage for step in steps if step}
        assert listed(session)[0].admission == first.admission
        return seen

    assert "probe" not in stages(first)
    assert "probe" in stages(None)
    assert "probe" in stages(replace(first, weight_hash="0" * 64))
    assert "probe" in stages(replace(first, content_hash="0" * 64))
    assert "probe" in stages(replace(first, admission=replace(first.admission, text="another")))
    layers = tuple(replace(layer, normalisation="layer_norm") for layer in first.layers)
    assert "probe" in stages(replace(first, layers=layers))
    failed = tuple(replace(layer, passed=False) for layer in first.admission.layers)
    degraded = replace(first, admission=replace(first.admission, passed=False, layers=failed))
    with pytest.raises(AdmissionFailedError):
        stages(degraded)
