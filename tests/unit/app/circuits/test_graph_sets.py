"""Circuits over several sets: what is checked before a discovery, and what is asked of each set after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.circuits_of_sets import ATTENTION, MLPS, circuit_of_sets
from tests.dataset_examples import request
from tests.unit.app.house import House, house, later, model_info, small_circuit
from tests.unit.app.sets.test_replacements import SETS, ignore, loaded
from tests.unit.replacement_values import layer_info, set_info, write_set
from trephine.app.circuits.circuit_cards import known_features
from trephine.app.circuits.circuit_costs import discovery_cost
from trephine.app.circuits.circuit_diff import compare
from trephine.app.circuits.graph_sets import loaded_sets, opened_layers, spanned_layers
from trephine.app.jobs.costs import predict_beside
from trephine.app.jobs.requests import DatasetCircuitRequest, DiscoverRequest, VerifyRequest
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_annotations import AutomaticGroups
from trephine.domain.circuit_queries import CircuitFilter
from trephine.domain.circuits import Circuit, DiscoverCircuit, GraphSet
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    ParentChangedError,
    ReplacementNotFoundError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.domain.replacements import (
    LayerKind,
    LoadReplacementSet,
    ReplacementLayerInfo,
    ReplacementSetInfo,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.domain.spanned_sets import check_parts_apart, check_sites_apart
from trephine.domain.verification import Substitute, VerificationOptions, VerifyCircuit


def attention() -> ReplacementSetInfo:
    """An SAE of 7 features on attention's output of both layers."""
    layers = tuple(
        replace(
            layer_info(layer),
            kind=LayerKind.SAE,
            site_in=Site(kind=SiteKind.ATTN_OUT, layer=layer),
            sites_out=(Site(kind=SiteKind.ATTN_OUT, layer=layer),),
            d_sae=7,
        )
        for layer in (0, 1)
    )
    return replace(set_info(ATTENTION, content_hash="a" * 64), layers=layers)


async def two_sets(root: Any, scripts: dict[type, Any] | None = None) -> House:
    """A house whose model has `small`, a transcoder of layer 0, and attention's SAEs of layers 0 and 1."""
    write_set(root / "replacements", ATTENTION)

    def load(command: LoadReplacementSet) -> ReplacementSetInfo:
        return attention() if command.source.name == ATTENTION else set_info(command.source.name)

    here = await loaded(root, {**SETS, LoadReplacementSet: load, **(scripts or {})})
    await here.replacements.load("tiny", here.replacements.resolve(ATTENTION), ignore)
    return here


def asked(*sets: str, layers: tuple[int, ...] | None = None) -> DiscoverCircuit:
    """A discovery over sets."""
    first, *beside = sets
    return DiscoverCircuit(
        prompt="x", target=LogitTarget(token=" a"), replacement=first, beside=tuple(beside), layers=layers
    )


@pytest.mark.parametrize(
    ("command", "error", "field"),
    [
        (asked("gone", "small"), ReplacementNotFoundError, "replacement"),
        (asked("small", ATTENTION, "gone"), ReplacementNotFoundError, "beside[1]"),
        (asked("small", layers=(0, 1)), LayerOutOfRangeError, "layers[1]"),
        (asked("small", "neurons", layers=(2,)), LayerOutOfRangeError, "layers[0]"),
    ],
)
async def test_every_set_and_layer_is_checked_before_an_operation_is_made(tmp_path, command, error, field):
    """The field says which set is not there, or which layer no set has."""
    here = await two_sets(tmp_path)
    await here.operations.open()
    with pytest.raises(error) as refused:
        await here.operations.start(
            "DiscoverCircuit", DiscoverRequest(model="tiny", command=command), request_id=""
        )
    assert refused.value.context["field"] == field
    assert not here.operations.list()


async def test_two_sets_at_one_site_make_no_operation(tmp_path):
    """As `validate_only` refuses it; in the layers that one of them has alone they go together."""
    write_set(tmp_path / "replacements", "other")
    here = await two_sets(tmp_path)
    await here.replacements.load("tiny", here.replacements.resolve("other"), ignore)
    await here.operations.open()
    for command in (asked("small", "other"), asked(ATTENTION, "small", "other", layers=(0,))):
        with pytest.raises(UnsupportedOptionError, match="small and other both reconstruct mlp_out") as no:
            await here.operations.start(
                "DiscoverCircuit", DiscoverRequest(model="tiny", command=command), request_id=""
            )
        assert no.value.context["field"] == "beside"
    assert not here.operations.list()
    info, apart = await here.models.info("tiny"), asked(ATTENTION, "small", "other", layers=(1,))
    assert len(opened_layers(apart, info, loaded_sets(here.replacements, "tiny", apart))) == 1


def test_a_place_of_the_stream_has_one_owner_by_whatever_name():
    """The stream before a block is the one after the block below."""

    def on(kind: SiteKind, layer: int) -> tuple[str, ReplacementLayerInfo]:
        site = Site(kind=kind, layer=layer)
        return f"{kind}{layer}", replace(
            layer_info(layer), kind=LayerKind.SAE, site_in=site, sites_out=(site,)
        )

    for same in (
        (on(SiteKind.RESID_PRE, 1), on(SiteKind.RESID_POST, 0)),
        (on(SiteKind.EMBED, 0), on(SiteKind.RESID_PRE, 0)),
    ):
        with pytest.raises(UnsupportedOptionError, match="same place of the residual stream"):
            check_sites_apart(same)
    check_sites_apart([on(SiteKind.RESID_PRE, 1), on(SiteKind.RESID_MID, 1), on(SiteKind.RESID_POST, 1)])


async def test_a_layer_has_to_be_in_one_of_the_sets_alone(tmp_path):
    """What one set lacks another has; the error names them all and the layers that they have."""
    here = await two_sets(tmp_path)
    info = replace(model_info(), n_layers=4)
    both = asked("small", ATTENTION, layers=(0, 1))
    opened = opened_layers(both, info, loaded_sets(here.replacements, "tiny", both))
    assert [(one.layer, one.site_in.kind) for one in opened] == [
        (0, SiteKind.MLP_IN), (0, SiteKind.ATTN_OUT), (1, SiteKind.ATTN_OUT),
    ]  # fmt: skip
    outside = asked("small", ATTENTION, layers=(3,))
    with pytest.raises(LayerOutOfRangeError, match=f"small, {ATTENTION}: none covers layer 3 .* 0, 1"):
        opened_layers(outside, info, loaded_sets(here.replacements, "tiny", outside))


def test_neurons_beside_sets_are_those_of_mlps_that_no_set_reconstructs():
    """Attention's SAEs leave every MLP free; a transcoder takes its own where its layer is opened."""
    info = replace(model_info(), n_layers=3)
    sets = {"small": (layer_info(0),), ATTENTION: attention().layers}

    def neurons(*names: str, only: tuple[int, ...] | None = None) -> list[int]:
        spanned = spanned_layers((*names, "neurons"), info, sets, only)
        return [one.layer for one in spanned if one.kind is LayerKind.NEURONS]

    assert neurons("small") == [1, 2]
    assert neurons(ATTENTION) == [0, 1, 2]
    assert neurons("small", ATTENTION, only=(0, 2)) == [2]


def test_every_set_costs():
    """A set beside another takes more of both, and so do all neurons of the layers that are left."""
    info = replace(model_info(), n_layers=3, d_mlp=64)
    sets = {"small": (layer_info(0),), ATTENTION: attention().layers}
    one, two, three = (
        discovery_cost(asked(*names), info, 16, spanned_layers(names, info, sets))
        for names in (("small",), ("small", ATTENTION), ("small", ATTENTION, "neurons"))
    )
    assert one.seconds < two.seconds < three.seconds
    assert one.memory_bytes < two.memory_bytes < three.memory_bytes


def test_verification_counts_the_features_of_all_sets():
    """Masks and the random dictionary are as large as all of them."""
    info = model_info()
    whole = circuit_of_sets()
    sets = {MLPS: (layer_info(0), layer_info(1)), ATTENTION: attention().layers}

    def memory(circuit: Circuit) -> int:
        options = VerificationOptions(substitutes=(Substitute.ZERO,))
        command = VerifyCircuit(circuit=circuit, kept=(0,), options=options)
        return predict_beside(command, info, sets).memory_bytes

    alone, both = memory(replace(whole, beside=())), memory(whole)
    per_feature = 3 * 256 * 4 + 2 * info.d_model * 2
    assert both - alone == 2 * 7 * per_feature
    free = (*whole.beside, GraphSet(name="neurons"))
    assert memory(replace(whole, beside=free)) == both
    assert (
        memory(replace(whole, replacement=ATTENTION, beside=free[1:])) - both
        == 2 * (info.d_mlp - 3) * per_feature
    )


async def test_a_set_beside_has_to_be_the_one_that_a_circuit_was_found_with(tmp_path):
    """Verification and groups by direction refuse another set, or none, under the name of any set."""
    here = await two_sets(tmp_path)
    info = await here.models.info("tiny")
    own = replace(later(circuit_of_sets()), weight_hash=info.weight_hash, replacement="small")
    await here.circuits.save(own, circuit_id="own")
    stored, _ = await here.circuit_verifications.check(VerifyRequest(circuit="own"))
    assert stored.circuit.beside == own.beside
    other = replace(own, beside=(GraphSet(name=ATTENTION, content_hash="d" * 64),))
    await here.circuits.save(other, circuit_id="other")
    with pytest.raises(ParentChangedError, match=f"those of the set '{ATTENTION}'"):
        await here.circuit_verifications.check(VerifyRequest(circuit="other"))
    with pytest.raises(ParentChangedError, match=f"those of the set '{ATTENTION}'"):
        await here.circuit_annotations.group_automatically("other", AutomaticGroups(), "")
    await here.replacements.unload("tiny", ATTENTION)
    with pytest.raises(ReplacementNotFoundError, match=ATTENTION):
        await here.circuit_verifications.check(VerifyRequest(circuit="own"))


async def test_a_set_beside_that_was_lost_is_told_with_its_reason(tmp_path):
    """As it is told of a set that stands alone; the field is its own."""
    await two_sets(tmp_path)

    def load(command: LoadReplacementSet) -> ReplacementSetInfo:
        found = attention() if command.source.name == ATTENTION else set_info(command.source.name)
        return replace(found, content_hash="e" * 64) if command.source.name == ATTENTION else found

    again = house(tmp_path, {**SETS, LoadReplacementSet: load})
    await again.operations.open()
    await again.models.info("tiny")
    request = DiscoverRequest(model="tiny", command=asked("small", ATTENTION))
    with pytest.raises(
        ReplacementNotFoundError, match="could not be loaded again: its files have"
    ) as refused:
        await again.operations.start("DiscoverCircuit", request, request_id="")
    assert refused.value.context["field"] == "beside[0]"


async def test_circuits_are_listed_by_any_of_their_sets(tmp_path):
    """A filter by set finds those that span it beside another, too."""
    here = await loaded(tmp_path)
    await here.circuits.save(circuit_of_sets(), circuit_id="both")
    await here.circuits.save(small_circuit(), circuit_id="neurons")
    for name in (MLPS, ATTENTION):
        found = await here.circuits.list(CircuitFilter(replacement=name))
        assert [one.name for one in found] == ["circuits/both"]


def matched(first: Circuit, second: Circuit) -> set[str]:
    """Sets whose features are in both."""
    compared = compare(first, second, sum_positions=False).nodes
    return {one.node.replacement for one in compared if one.node.replacement and one.first and one.second}


def test_features_match_by_the_content_of_their_own_set():
    """One set's content says nothing of another's, and what is not known of one leaves the other alone."""
    one = circuit_of_sets()
    turned = replace(
        one,
        replacement=ATTENTION,
        set_hash="a" * 64,
        beside=(GraphSet(name=MLPS, content_hash="c" * 64),),
    )
    assert matched(one, turned) == {MLPS, ATTENTION}
    changed = replace(one, beside=(GraphSet(name=ATTENTION, content_hash="b" * 64),))
    assert matched(one, changed) == {MLPS}
    partly = replace(changed, set_hash="")
    assert matched(one, partly) == {MLPS}
    assert matched(one, replace(one, beside=(GraphSet(name=ATTENTION),))) == {MLPS, ATTENTION}


async def test_a_panel_tells_of_a_feature_by_the_content_of_its_own_set():
    """Each set's features are asked for under its own hash."""
    seen = {}

    class Features:
        async def describe(self, question: Any, *asked: int, **how: int) -> Any:
            seen[question.replacement] = question.content_hash
            raise ReplacementNotFoundError("gone")

    wanted = [FeatureRef(replacement=name, layer=0, index=5) for name in (MLPS, ATTENTION, "other")]
    await known_features(Features(), circuit_of_sets(), wanted)  # type: ignore[arg-type]
    assert seen == {MLPS: "c" * 64, ATTENTION: "a" * 64, "other": ""}


@pytest.mark.parametrize(
    ("sets", "field"), [(("small", "small"), "beside"), (("neurons", "small"), "replacement")]
)
def test_sets_that_make_no_graph_are_refused(sets, field):
    """No set twice, and no set beside neurons."""
    with pytest.raises(InvalidRequestError) as refused:
        asked(*sets)
    assert isinstance(refused.value, TrephineError)
    assert refused.value.context["field"] == field


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (("neurons", "small"), "beside[0]"),
        (("small", ATTENTION, "heads"), "beside[1]"),
    ],
)
async def test_two_names_for_one_part_make_no_dataset_operation(tmp_path, names, field):
    """To ablate both would take it out twice: told before the work, and only of layers that are asked for."""
    here = await two_sets(tmp_path)
    await here.operations.open()
    first, *beside = names
    asked = request(replacement=first, beside=tuple(beside))
    with pytest.raises(UnsupportedOptionError, match="replaced twice") as refused:
        await here.operations.start(
            "DiscoverDatasetCircuit", DatasetCircuitRequest(model="tiny", command=asked), request_id=""
        )
    assert refused.value.context["field"] == field
    assert not here.operations.list()
    apart = request(replacement="neurons", beside=("small",), layers=(1,))
    await here.dataset_circuits.check(DatasetCircuitRequest(model="tiny", command=apart))


def test_a_place_of_the_stream_is_one_part_by_whatever_name():
    """Neurons are their MLP, heads their attention, and a block begins where the one below ends."""

    def of(*kinds: SiteKind, layer: int = 1) -> tuple[Site, ...]:
        return tuple(Site(kind=kind, layer=layer) for kind in kinds)

    check_parts_apart(
        [("a", of(SiteKind.RESID_PRE)), ("b", of(SiteKind.RESID_POST)), ("a", of(SiteKind.RESID_PRE))]
    )
    for one, other in (
        (of(SiteKind.RESID_PRE), of(SiteKind.RESID_POST, layer=0)),
        (of(SiteKind.NEURONS), of(SiteKind.MLP_OUT)),
        (of(SiteKind.ATTN_OUT), of(SiteKind.ATTN_Z)),
    ):
        with pytest.raises(UnsupportedOptionError, match="b and a both stand for"):
            check_parts_apart([("a", one), ("b", other)])
