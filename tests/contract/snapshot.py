"""The wire contract as plain data. `python -m tests.contract.snapshot` writes it anew.

Adding to the contract changes the snapshot; that is deliberate work of whoever adds, in the same commit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

FILE = Path(__file__).with_name("contract.json")
MODULES = (
    "artifact_service", "audit_service", "circuit_group_scores", "circuit_queries", "circuit_service",
    "circuit_targets", "circuit_verification", "circuit_views", "removal", "gguf", "spurious_outcome",
    "spurious_removal", "common", "dataset_circuits", "global_circuits", "edit_evaluations", "edit_history",
    "edit_service", "export_signing", "export_verdict", "generation_service",
    "intervention_service", "interventions", "live_edits",
    "model_service", "operation_service", "replacement_service",
    "feature_service",
)  # fmt: skip


def files() -> Iterator[FileDescriptor]:
    """Every file of `trephine.v1`."""
    for name in MODULES:
        yield import_module(f"trephine.v1.{name}_pb2").DESCRIPTOR


def contract() -> dict[str, Any]:
    """Messages with their fields, enums with their values, services with their methods."""
    found: dict[str, Any] = {"messages": {}, "enums": {}, "services": {}}
    for file in files():
        for message in file.message_types_by_name.values():
            found["messages"][message.full_name] = {str(one.number): _field(one) for one in message.fields}
        for enum in file.enum_types_by_name.values():
            found["enums"][enum.full_name] = _values(enum)
        for service in file.services_by_name.values():
            found["services"][service.full_name] = {one.name: _method(one) for one in service.methods}
    return found


def _field(field: FieldDescriptor) -> str:
    kind = field.message_type or field.enum_type
    named = kind.full_name if isinstance(kind, Descriptor | EnumDescriptor) else f"type {field.type}"
    shape = "repeated" if field.is_repeated else "optional" if field.has_presence else "plain"
    group = field.containing_oneof.name if field.containing_oneof else ""
    return f"{field.name}: {shape} {named}" + (f" in {group}" if group else "")


def _values(enum: EnumDescriptor) -> dict[str, str]:
    return {str(value.number): value.name for value in enum.values}


def _method(method: Any) -> str:
    request = ("stream " if method.client_streaming else "") + method.input_type.full_name
    response = ("stream " if method.server_streaming else "") + method.output_type.full_name
    return f"{request} -> {response}"


if __name__ == "__main__":
    FILE.write_text(json.dumps(contract(), indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{FILE}\n")
