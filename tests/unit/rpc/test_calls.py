"""What the log may say of a call: the resources that it names, and nothing that could be another line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from trephine.rpc.calls import Call
from trephine.v1 import edit_service_pb2


def resources(request: Message) -> dict[str, str]:
    """What is remembered of a request."""
    context = cast(Any, SimpleNamespace())
    call = Call(method="/trephine.v1.S/M", context=context, request_id="r", over_network=False)
    call.saw(request)
    return call.resources


@pytest.mark.parametrize("edit", ["edits/quiet", "edits/quiet@1", f"edits/{'q' * 128}@123456789"])
def test_an_edit_is_logged_with_its_version(edit: str):
    """Exports name one version of an edit: whoever reads the log must see which."""
    request = edit_service_pb2.ExportCheckpointRequest(edit=edit, export_id="quiet-f32")
    assert resources(request) == {"edit": edit, "export_id": "quiet-f32"}


def test_reading_an_edit_names_it_as_exporting_does():
    """One name stands in all lines that are about one thing."""
    assert resources(edit_service_pb2.GetEditRequest(name="edits/quiet@2")) == {"name": "edits/quiet@2"}


@pytest.mark.parametrize(
    "name",
    [
        "edits/quiet@1\n",
        "edits/quiet\nrpc method=/x",
        "edits/\x1b[31mquiet",
        'edits/quiet" code="OK',
        "edits/\u202eteiuq",
        "edits/quiet @1",
        "edits/" + "q" * 200,
    ],
)
def test_no_name_can_write_a_line_of_its_own(name: str):
    """Control characters, spaces, quotes, other scripts and long texts are not repeated."""
    assert resources(edit_service_pb2.GetEditRequest(name=name)) == {"name": "(unprintable)"}
