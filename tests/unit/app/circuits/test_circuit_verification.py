"""Verifying stored circuits: what is refused before any work, what is kept, and how it is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.app.house import circuit, house, later, small_circuit
from tests.unit.app.sets.test_replacements import loaded
from trephine.app.jobs.requests import VerifyRequest
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_annotations import Annotations, AutomaticGroups, NodeGroup
from trephine.domain.circuit_queries import Provenance, Pruning
from trephine.domain.errors import (
    InvalidRequestError,
    ModelNotReadyError,
    ParentChangedError,
    ReplacementNotFoundError,
    ResourceNotFoundError,
    UnsupportedOptionError,
)
from trephine.domain.operations import OperationState
from trephine.domain.tokens import Token, Tokenize, Tokens
from trephine.domain.verification import (
    Examination,
    Substitute,
    VerificationOptions,
    VerificationReport,
    VerifyCircuit,
)

EXAMINED = Examination(
    title="the circuit", replacement="neurons", graph_features=2, circuit_features=1, first_position=0,
    baseline=1.5, agreements=(), comparisons=(), depths=(), faithfulness=(), worst_case=None, measurements=(),
)  # fmt: skip


async def opened(tmp_path, *, load: bool = True, provenance: Provenance | None = None, **changes: Any):
    """A house with a stored circuit of the model `tiny`, and what the engine was asked."""
    asked: list[VerifyCircuit] = []

    def answer(command: VerifyCircuit) -> VerificationReport:
        asked.append(command)
        return VerificationReport(
            prompt=command.circuit.prompt, target="x", model="tiny", weight_hash="", given=EXAMINED,
            control=None, control_note="not applicable", caveats=("one",), seed=command.options.seed,
            seconds=2.0, peak_extra_bytes=3,
        )  # fmt: skip

    here = house(tmp_path, {VerifyCircuit: answer})
    await here.operations.open()
    weights = ""
    if load:
        info = await here.models.load(here.models.resolve("tiny"), lambda progress: None)
        weights = info.weight_hash
    found = replace(later(small_circuit()), model="tiny", weight_hash=weights, **changes)
    saved: dict[str, Any] = {} if provenance is None else {"provenance": provenance}
    await here.circuits.save(found, circuit_id="c1", **saved)
    return here, asked


async def test_a_verification_is_kept_with_its_circuit(tmp_path):
    """An operation stores it once; it is read by name and listed with its circuit, also by a later server."""
    here, asked = await opened(tmp_path)
    request = VerifyRequest(circuit="circuits/c1")
    started = await here.operations.start("VerifyCircuit", request, request_id="")
    done = await here.operations.wait(started.id)
    assert done.state is OperationState.SUCCEEDED, done.failure
    stored = await here.circuit_verifications.get(done.result)
    assert (stored.name, stored.circuit) == (done.result, "circuits/c1")
    assert stored.report.given == EXAMINED
    assert await here.circuit_verifications.list("c1") == (stored,)
    again = await here.circuit_verifications.run(
        request, lambda progress: None, verification_id=done.result.partition("/")[2]
    )
    assert again == stored
    assert len(asked) == 1
    assert await house(tmp_path).circuit_verifications.list("c1") == (stored,)


async def test_a_circuit_takes_its_verifications_along(tmp_path):
    """They are forgotten with it, before it and on disk; those of other circuits stay."""
    here, _ = await opened(tmp_path)
    await here.circuits.save((await here.circuits.get("c1")).circuit, circuit_id="c2")
    for circuit_id, verification_id in (("c1", "v1"), ("c1", "v2"), ("c2", "v3")):
        request = VerifyRequest(circuit=f"circuits/{circuit_id}")
        await here.circuit_verifications.run(request, lambda progress: None, verification_id=verification_id)
    folder = next(tmp_path.rglob("circuit-verifications"))
    await here.circuits.delete("c1")
    assert [path.stem for path in folder.iterdir()] == ["v3"]
    with pytest.raises(ResourceNotFoundError):
        await here.circuit_verifications.get("v1")
    assert [one.name for one in await here.circuit_verifications.list("c2")] == ["circuitVerifications/v3"]


async def test_a_crash_while_a_circuit_is_deleted_leaves_it_to_be_deleted(tmp_path, monkeypatch):
    """Its verifications go first: what is left is a circuit, which can be asked for and deleted again."""
    here, _ = await opened(tmp_path)
    await here.circuit_verifications.run(
        VerifyRequest(circuit="circuits/c1"), lambda progress: None, verification_id="v1"
    )

    def crash(path: Path, target: Path) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="the power went"):
            await here.circuits.delete("c1")
    later_server = house(tmp_path)
    assert await later_server.circuit_verifications.list("c1") == ()
    await later_server.circuits.delete("c1")
    assert not later_server.circuits.exists("c1")


async def test_a_circuit_that_is_deleted_while_it_is_verified_leaves_nothing(tmp_path):
    """Neither a verification of nothing nor one that the next circuit of that id would find."""
    here, asked = await opened(tmp_path)
    folder = next(tmp_path.rglob("circuit-verifications"))
    request = VerifyRequest(circuit="circuits/c1")
    stored, command = await here.circuits.get("c1"), here.circuit_verifications._command

    async def deleted_meanwhile(request: VerifyRequest) -> VerifyCircuit:
        asked_for = await command(request)
        await here.circuits.delete(stored.name)
        return asked_for

    here.circuit_verifications._command = deleted_meanwhile
    with pytest.raises(ResourceNotFoundError, match="was deleted while it was verified"):
        await here.circuit_verifications.run(request, lambda progress: None, verification_id="v1")
    assert len(asked) == 1
    assert list(folder.iterdir()) == []


async def test_engine_gets_the_pruned_circuit_and_its_groups(tmp_path):
    """The pruned nodes, and the caller's supernodes or else the circuit's groups."""
    here, asked = await opened(tmp_path)
    group = NodeGroup(name="g", nodes=(0, 1), author="a", create_time="t")
    await here.circuits.annotate("c1", lambda said: replace(said, groups=(group,)))
    assert (await here.circuits.annotations("c1")) != Annotations()
    for number, supernodes in enumerate(((), ((1,),))):
        request = VerifyRequest(circuit="c1", supernodes=supernodes, node_threshold=1.0, edge_threshold=1.0)
        await here.circuit_verifications.run(request, lambda progress: None, verification_id=f"v{number}")
    assert [command.supernodes for command in asked] == [((0, 1),), ((1,),)]
    everything = tuple(range(len(later(small_circuit()).nodes)))
    assert {command.kept for command in asked} == {everything}


@pytest.mark.parametrize("how", ["", "at most 12 edges"])
async def test_what_is_verified_is_what_files_show(tmp_path, how):
    """By circuit-tracer's thresholds; a circuit that was pruned already as it is, and pinned nodes always."""
    edges = circuit(later(small_circuit()).nodes, [(2, 0, 1.0), (0, 3, 2.0), (1, 3, -0.1)]).edges
    here, asked = await opened(tmp_path, provenance=Provenance(how=how), edges=edges)
    for number in range(2):
        request = VerifyRequest(circuit="c1")
        await here.circuit_verifications.run(request, lambda progress: None, verification_id=f"v{number}")
        _, shown = await here.circuits.render("c1", "json")
        assert asked[number].kept == shown.nodes
        await here.circuit_annotations.pin("c1", [1], author="me")
    assert asked[0].kept == ((0, 1, 2, 3) if how else (0, 2, 3))
    assert asked[1].kept == (0, 1, 2, 3)


async def test_what_cannot_be_verified_is_refused_before_any_work(tmp_path):
    """Unknown circuits, other weights, lost sets, imported graphs, models that are not loaded."""
    here, asked = await opened(tmp_path)
    with pytest.raises(ResourceNotFoundError):
        await here.circuit_verifications.check(VerifyRequest(circuit="other"))
    with pytest.raises(ResourceNotFoundError):
        await here.circuit_verifications.get("circuitVerifications/none")
    other = replace(later(small_circuit()), model="tiny", weight_hash="f" * 64)
    await here.circuits.save(other, circuit_id="changed")
    with pytest.raises(ParentChangedError, match="discover it again"):
        await here.circuit_verifications.check(VerifyRequest(circuit="changed"))
    gone = replace((await here.circuits.get("c1")).circuit, replacement="gone")
    await here.circuits.save(gone, circuit_id="gone")
    with pytest.raises(ReplacementNotFoundError, match="or load it first"):
        await here.circuit_verifications.check(VerifyRequest(circuit="gone"))
    with pytest.raises(InvalidRequestError, match="no node 4") as unknown:
        await here.circuit_verifications.check(VerifyRequest(circuit="c1", supernodes=((0, 1), (1, 4))))
    assert unknown.value.context["field"] == "supernodes[1]"
    foreign = Provenance(origin="imported", how="a file")
    await here.circuits.save(later(small_circuit()), circuit_id="foreign", provenance=foreign)
    with pytest.raises(UnsupportedOptionError, match="imported"):
        await here.circuit_verifications.check(VerifyRequest(circuit="foreign"))
    smaller = await here.circuit_views.prune("foreign", Pruning(node_threshold=1.0))
    assert smaller.provenance.origin == "pruned"
    with pytest.raises(UnsupportedOptionError, match="imported"):
        await here.circuit_verifications.check(VerifyRequest(circuit=smaller.name))
    assert not asked


async def test_a_model_that_is_not_loaded_is_refused(tmp_path):
    """The error names it, whatever its weights are."""
    here, asked = await opened(tmp_path, load=False)
    with pytest.raises(ModelNotReadyError):
        await here.operations.start("VerifyCircuit", VerifyRequest(circuit="c1"), request_id="")
    assert not asked


async def test_prediction_grows_with_what_is_asked(tmp_path):
    """Twice the ablations cost more tokens; nothing is measured."""
    here, asked = await opened(tmp_path)
    small = VerifyRequest(circuit="c1")
    large = replace(small, options=replace(small.options, nodes=1000))
    _, info, first = await here.circuit_verifications.predict(small)
    _, _, second = await here.circuit_verifications.predict(large)
    assert info.name == "tiny"
    assert 0 < first.tokens < second.tokens
    assert first.memory_bytes > 0
    assert not asked


async def test_a_circuit_with_nothing_to_ablate_is_refused_before_any_work(tmp_path):
    """Features at position 0 are never ablated; prediction and start both say so."""
    here, asked = await opened(tmp_path)
    at_start = replace((await here.circuits.get("c1")).circuit, nodes=small_circuit().nodes)
    await here.circuits.save(at_start, circuit_id="start")
    request = VerifyRequest(circuit="start")
    for refuse in (here.circuit_verifications.check, here.circuit_verifications.predict):
        with pytest.raises(InvalidRequestError, match="nothing to ablate") as refused:
            await refuse(request)
        assert refused.value.context["field"] == "node_threshold"
    with pytest.raises(InvalidRequestError, match="nothing to ablate"):
        await here.operations.start("VerifyCircuit", request, request_id="")
    assert not asked


async def test_prediction_reads_the_counterfactual(tmp_path):
    """One of another length, or the prompt itself, is refused; without resampling none is read."""
    here, _ = await opened(tmp_path)
    split: list[str] = []

    def tokenize(command: Tokenize) -> Tokens:
        split.append(command.text)
        ids = [int(word) for word in command.text.split()]
        return Tokens(tokens=tuple(Token(id=one, raw=b"", display="") for one in ids))

    here.launcher.scripts[Tokenize] = tokenize
    stored = await here.circuits.get("c1")
    same = " ".join(str(token.id) for token in stored.circuit.tokens)
    every = tuple(Substitute)
    for text, told in (("7 8", None), ("7", "equally long"), (same, "the prompt itself")):
        options = VerificationOptions(counterfactual=text, substitutes=every)
        request = VerifyRequest(circuit="c1", options=options)
        if told is None:
            _, _, cost = await here.circuit_verifications.predict(request)
            assert cost.tokens > 0
            continue
        with pytest.raises(InvalidRequestError, match=told) as refused:
            await here.circuit_verifications.predict(request)
        assert refused.value.context["field"] == "counterfactual"
    assert split == ["7 8", "7", same]
    await here.circuit_verifications.predict(VerifyRequest(circuit="c1"))
    assert len(split) == 3


async def test_another_set_of_the_same_name_is_refused_before_any_work(tmp_path):
    """A set is its content; a circuit that was stored before that was recorded passes."""
    here = await loaded(tmp_path)
    info = await here.models.info("tiny")
    own = replace(
        later(small_circuit()),
        model="tiny",
        weight_hash=info.weight_hash,
        replacement="small",
        set_hash="c" * 64,
    )
    for name, content in (("own", "c" * 64), ("other", "d" * 64), ("old", "")):
        await here.circuits.save(replace(own, set_hash=content), circuit_id=name)
    for name in ("own", "old"):
        stored, _ = await here.circuit_verifications.check(VerifyRequest(circuit=name))
        assert stored.circuit.set_is_unknown == (name == "old")
    with pytest.raises(ParentChangedError, match="other features than those of the set") as refused:
        await here.circuit_verifications.check(VerifyRequest(circuit="other"))
    assert refused.value.context == {"circuit_set": "d" * 64, "loaded_set": "c" * 64}


async def test_a_target_that_is_not_known_any_more_is_refused_before_any_work(tmp_path):
    """Circuits that were stored before their targets were only tell a next token's."""
    here, asked = await opened(tmp_path)
    old = (await here.circuits.get("c1")).circuit
    earlier = replace(old, tokens=(*old.tokens, *old.tokens))
    assert earlier.positions == (1,)
    await here.circuits.save(earlier, circuit_id="earlier")
    with pytest.raises(UnsupportedOptionError, match="at the last position"):
        await here.circuit_verifications.check(VerifyRequest(circuit="earlier"))
    known = replace(earlier, asked=LogitTarget(token=" a"))
    await here.circuits.save(known, circuit_id="known")
    await here.circuit_verifications.check(VerifyRequest(circuit="known"))
    assert not asked


async def test_directions_of_another_set_of_the_same_name_group_nothing(tmp_path):
    """Groups by direction are refused, too; the engine is not asked."""
    here = await loaded(tmp_path)
    small = small_circuit()
    two = (small.nodes[0], *small.nodes)
    circuit = replace(small, nodes=two, model="tiny", replacement="small", set_hash="d" * 64)
    await here.circuits.save(circuit, circuit_id="c1")
    with pytest.raises(ParentChangedError, match="other features than those of the set"):
        await here.circuit_annotations.group_automatically("c1", AutomaticGroups(), "")
