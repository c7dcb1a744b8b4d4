"""What handles say of themselves."""

from __future__ import annotations

from dataclasses import replace

from tests.global_circuits import global_circuit
from tests.synthetic_circuits import synthetic_circuit
from trephine.app.circuits.circuits import StoredCircuit
from trephine.client import Trephine
from trephine.client.aio import connect as connect_async
from trephine.client.cli.discover import circuit_facts
from trephine.client.decoding import decode
from trephine.client.descriptions import of_circuit
from trephine.client.types import CircuitInfo
from trephine.client.views import circuit_html
from trephine.rpc.wire.circuits import circuit_to_wire


def test_handles_say_what_they_are(trephine: Trephine, address: str):
    """In a notebook they were `object at 0x7f0c0c01c6d0`; nothing is asked of the server for it."""
    model = trephine.model("tiny")
    operation = model.start_discover("Mary", target=" Mary")
    circuit = operation.result()
    loaded = model.load_replacements("small")
    said = [repr(one) for one in (trephine, model, operation, circuit, loaded, model.features())]
    assert said == [
        f"<Trephine connected to {address}>",
        "<Model models/tiny: loaded, float32 on cpu>",
        "<Operation operations/1: DiscoverCircuit succeeded>",
        "<Circuit circuits/c1: Mary after 'Mary', 2 nodes, 1 edges>",
        "<ReplacementSet models/tiny/replacements/small: loaded, 1 layers>",
        "<ModelFeatures neurons of models/tiny>",
    ]
    assert repr(model.feature(1, 2)) == "<Feature 1:2 of models/tiny>"


async def test_awaited_ones_too(address: str):
    """The same words under their own names."""
    async with await connect_async(address, token="secret") as client:
        model = await client.load_model("tiny")
        assert repr(client) == f"<AsyncTrephine connected to {address}>"
        assert repr(model) == "<AsyncModel models/tiny: loaded, float32 on cpu>"
        assert repr(model.features("small")) == "<AsyncModelFeatures small of models/tiny>"


def test_shares_of_influence_say_what_they_are_shares_of():
    """What is selected is a share of the features' influence, what errors bring in one of all."""
    stored = StoredCircuit(name="circuits/c1", create_time="", circuit=synthetic_circuit(nodes=40, edges=100))
    info = replace(decode(CircuitInfo, circuit_to_wire(stored)), selected_share=0.16, error_share=0.951)
    for sets, replacement, noun in ((info.sets, info.replacement, "features"), ((), "neurons", "neurons")):
        told = dict(circuit_facts(replace(info, sets=sets, replacement=replacement)))
        assert told["inside"] == f"16.0% of the {noun}' influence; 95.1% of all influence is through errors"


def test_global_circuits_are_told_by_their_texts():
    """In a notebook too: they have no prompt, and no target that it ends in."""
    stored = StoredCircuit(name="circuits/g1", create_time="", circuit=global_circuit())
    info = decode(CircuitInfo, circuit_to_wire(stored))
    assert of_circuit(info) == "circuits/g1: global, over 30 texts, 4 nodes, 3 edges"
    assert "</b>: global, over 30 texts, 4 nodes, 3 edges (twera)</p>" in circuit_html(info, ())
