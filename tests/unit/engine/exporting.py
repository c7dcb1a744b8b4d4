"""Exports of tiny models, for tests."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from transformers import AutoModelForCausalLM, AutoTokenizer

from trephine.domain.edits import Edit
from trephine.domain.exports import CompileExport, Export, ExportPlan, PlanExport
from trephine.domain.interventions import Intervention
from trephine.domain.sites import NEURONS
from trephine.engine.edits.edit_sets import loaded_sets
from trephine.engine.exports.export import compile_export
from trephine.engine.exports.planning import plan_export
from trephine.engine.models.hosted import HostedModel, host
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.contexts import sets_of


def hosted_in(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> HostedModel:
    """Host a folder's model as `LoadModel` does."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    return host(model, AutoTokenizer.from_pretrained(folder), name="parent", folder=folder)


def edit_of(hosted: HostedModel, *interventions: Intervention, **fields: Any) -> Edit:
    """Make an edit of a hosted model; unless told otherwise, of the sets that are loaded."""
    values: dict[str, Any] = {
        "name": "no-mary",
        "version": 1,
        "content_hash": "c" * 64,
        "interventions": interventions,
        "reason": "a `reason` with </script> and a\nline end",
        "author": "a test",
        "model": hosted.info.name,
        "weight_hash": hosted.info.weight_hash,
        "evidence": ("circuits/one",),
        "create_time": "2026-01-01T00:00:00Z",
    }
    edit = Edit(**(values | fields))
    known = hosted.replacements.keys() >= set(sets_of(interventions)) - {NEURONS}
    return edit if "sets" in fields or not known else replace(edit, sets=loaded_sets(hosted, edit))


@torch.inference_mode()
def planned(hosted: HostedModel, edit: Edit) -> ExportPlan:
    """Plan an export."""
    return finish(plan_export(Session(hosted=hosted), PlanExport(edit=edit)))


def compiling(
    hosted: HostedModel, edit: Edit, plan: ExportPlan, target: Path, **options: Any
) -> Generator[Any, None, Export]:
    """Start an export; nothing has run before the first `next`."""
    command = CompileExport(edit=edit, plan=plan, name=target.name, folder=str(target), **options)
    return compile_export(Session(hosted=hosted), command)


@torch.inference_mode()
def exported(hosted: HostedModel, edit: Edit, target: Path, **options: Any) -> Export:
    """Plan and export."""
    return finish(compiling(hosted, edit, planned(hosted, edit), target, **options))


def write_key(path: Path) -> Path:
    """Write a fresh P-256 private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path
