"""What a request about a dataset may say, and which of its fields a refusal names."""

from __future__ import annotations

from typing import Any

import pytest

from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.dataset_circuits import discover_dataset_from_wire
from trephine.v1 import dataset_circuits_pb2 as pb

TRAINING, HELD_OUT = (
    [pb.DatasetExample(clean=text, answers=[" x"]) for text in texts]
    for texts in (("one", "two"), ("three", "four"))
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stability_draws", -1),
        ("stability_share", 0.0),
        ("stability_share", 1.0),
        ("stability_keep", 0.0),
        ("nodes", 0),
        ("threshold", -1.0),
        ("edge_nodes", 513),
        ("edge_examples", 0),
        ("random_circuits", -1),
        ("bootstrap", 9),
        ("steps", 0),
        ("exact_nodes", 0),
        ("clusters", 33),
    ],
)
def test_a_number_out_of_its_domain_is_named_as_in_the_request(field: str, value: Any):
    """A program looks the field up in what it sent."""
    request = pb.DiscoverDatasetCircuitRequest(
        model="models/tiny", training=TRAINING, held_out=HELD_OUT, **{field: value}
    )
    with pytest.raises(InvalidRequestError, match=f"^{field} must be") as refused:
        discover_dataset_from_wire(request)
    assert refused.value.context["field"] == field
