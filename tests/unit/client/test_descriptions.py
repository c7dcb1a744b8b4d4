"""What handles say of themselves."""

from __future__ import annotations

from trephine.client import Trephine
from trephine.client.aio import connect as connect_async


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
