"""CompileExport: build beside the target, certify in a clean process, sign, publish by one rename."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trephine.domain.commands import Progress
from trephine.domain.errors import ParentChangedError
from trephine.domain.exports import (
    Certificate,
    CompileExport,
    Export,
    ExportedFile,
)
from trephine.domain.removal import certified_only
from trephine.domain.signing import SignedBy
from trephine.engine.attack.running import attacked
from trephine.engine.certificates.card import CARD_NAME, model_card
from trephine.engine.certificates.certification import (
    STORED_NAMES,
    Findings,
    certify,
    evidence_bytes,
    narrower,
    write_evidence,
    write_retained,
)
from trephine.engine.certificates.export_texts import ExportTexts, export_texts
from trephine.engine.certificates.gates import judge
from trephine.engine.certificates.leaving_out import left_out_bytes, write_left_out
from trephine.engine.certificates.measurements import measurements_of
from trephine.engine.certificates.missed_gates import missed_gates
from trephine.engine.certificates.rounding_floor import is_compared_wide
from trephine.engine.edits.edit_sets import loaded_sets
from trephine.engine.exports import manifest, parents, signing
from trephine.engine.exports.adapter import write_adapter
from trephine.engine.exports.planning import growth_bytes, plan_hash, program_of, require_parent
from trephine.engine.exports.reshaping import reshaped_files, write_weights
from trephine.engine.models.fingerprint import weight_hash
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.models.shards import TensorEntry, read_entries, read_tensor, sha256_of, stored_dtype
from trephine.engine.models.staging import (
    Staging,
    copy_file,
    full_disk_refused,
    require_free,
    require_space,
    sweep_leftovers,
)
from trephine.engine.quantised.certification import quantised_copies
from trephine.engine.runs.retain import RetainText
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.rounding import on_record

_SLACK_BYTES = 64 << 20
Work = Generator[Progress | None, None, None]


@dataclass(slots=True, kw_only=True)
class Build:
    """One export while it is made."""

    hosted: HostedModel
    command: CompileExport
    texts: ExportTexts
    staging: Staging
    entries: dict[str, TensorEntry]
    program: WeightProgram
    before: dict[str, str] = field(default_factory=dict)
    """sha256 of every tensor's bytes in the parent."""
    after: dict[str, str] = field(default_factory=dict)
    exported: dict[str, TensorEntry] = field(default_factory=dict)
    """The tensors of the folder that was built."""

    @property
    def retain(self) -> RetainText:
        """What is measured."""
        return self.texts.measured

    @property
    def folder(self) -> Path:
        """Where the checkpoint is built."""
        return self.staging.checkpoint

    @property
    def reshaped(self) -> frozenset[str]:
        """Shards that are written anew, since tensors in them grow or are new."""
        return reshaped_files(self.program.changes)

    @property
    def stored_dtype(self) -> str:
        """What the parent's files hold, as safetensors writes it."""
        return stored_dtype(self.entries)


def compile_export(session: Session, command: CompileExport) -> Generator[Progress | None, None, Export]:
    """Compile an edit from the parent's files, certify what was written, publish it.

    The parent is the folder that the loaded model came from. Whatever happens before the rename leaves
    nothing behind but, on request, `NAME.rejected`.

    Raises:
        ExportTargetExistsError: If the target, or the rejected folder that may be kept, exists.
        ParentChangedError: If weights, files or plan are not those that the edit was made for.
        DiskFullError: If there is no room.
        GateMissedError: With the figures, if a measurement exceeds its planned bound.
    """
    target = Path(command.folder)
    require_free(target)
    if command.keep_rejected:
        require_free(_rejected(target))
    sweep_leftovers(target.parent)
    build = yield from _prepare(session.require_model().pinned(), command, target)
    try:
        with full_disk_refused():
            build.staging.open()
        return (yield from _make(build))
    finally:
        build.staging.close()


def _prepare(
    hosted: HostedModel, command: CompileExport, target: Path
) -> Generator[Progress | None, None, Build]:
    require_parent(hosted, command.edit)
    entries = read_entries(hosted.folder)
    texts = export_texts(hosted, command.options.text)
    program = yield from program_of(hosted, entries, command.edit, texts, command.options)
    _require_plan(command, program)
    growth = growth_bytes(hosted, entries, program, command.options)
    narrow = narrower(hosted, stored_dtype(entries))
    needed = left_out_bytes(hosted, program.apart, command.edit.interventions)
    needed += parents.copied_bytes(hosted.folder, entries)
    wide = is_compared_wide(hosted, program)
    needed += evidence_bytes(hosted, texts, narrow, quantised=bool(command.options.gguf), wide=wide)
    require_space(target.parent, needed + growth + _SLACK_BYTES)
    return Build(
        hosted=hosted,
        command=command,
        texts=texts,
        staging=Staging(target),
        entries=entries,
        program=program,
    )


def _require_plan(command: CompileExport, program: WeightProgram) -> None:
    """Refuse a plan that is not whole, not of this edit, or not what would be written."""
    plan, edit = command.plan, command.edit
    planned = set(plan.changed_tensors)
    if (
        plan.plan_hash != plan_hash(plan)
        or plan.edit_hash != edit.content_hash
        or plan.parent_hash != edit.weight_hash
        or planned != {change.name for change in program.changes}
    ):
        raise ParentChangedError(
            "the plan is not the plan of this edit on these weights; plan the export again", edit=edit.name
        )


def _make(build: Build) -> Generator[Progress | None, None, Export]:
    parent = yield from _copy(build)
    yield from _patch(build)
    interventions = build.command.edit.interventions
    yield from write_evidence(
        build.hosted,
        build.retain,
        interventions,
        build.program.features,
        build.staging.evidence,
        stored=narrower(build.hosted, build.stored_dtype),
        wide=is_compared_wide(build.hosted, build.program),
    )
    if build.texts.retained is not None:
        yield from write_retained(build.hosted, build.texts.retained, interventions, build.staging.evidence)
    yield from write_left_out(
        build.hosted, build.retain, build.program.apart, interventions, build.staging.evidence
    )
    findings = yield from certify(
        build.hosted,
        build.texts,
        interventions,
        build.program,
        build.folder,
        build.staging.evidence,
        stored_dtype=build.stored_dtype,
        copied=parents.sort_files(build.hosted.folder, build.entries)[0],
    )
    certificate = _certificate(build, findings)
    if build.command.options.gguf and not certificate.failed:
        certificate = yield from _quantised(build, certificate)
    if build.command.options.attack and not certificate.failed:
        certificate = yield from _attacked(build, certificate)
    files = yield from _document(build, parent, certificate)
    return (yield from _publish(build, certificate, files))


def _copy(build: Build) -> Generator[Progress | None, None, manifest.ParentRecord]:
    """Copy what belongs to the checkpoint byte for byte; hash everything that the parent has."""
    source = build.hosted.folder
    copied, left_out = parents.sort_files(source, build.entries)
    for done, (path, name) in enumerate(copied.items()):
        if path in build.reshaped:
            continue
        yield Progress(stage="copy", done=done, total=len(copied), detail=name)
        yield from copy_file(source / path, build.folder / name)
    # Behind the copying: that copies are what lies in the parent's folder is the certifier's to say.
    yield from parents.require_as_loaded(build.hosted, build.entries)
    files = yield from manifest.describe_files(source)
    yield from _check_parent(build)
    return manifest.ParentRecord(files=tuple(files), left_out=left_out, tensors=build.before)


def _check_parent(build: Build) -> Work:
    """Hold the copied files against the loaded weights, one tensor a quantum, and hash both.

    Loaded weights may be mapped from the very files, so that a file that is changed in place changes them:
    then they no longer have the hash that they were loaded with.

    Raises:
        ParentChangedError: If a file, or the loaded model, is not what was loaded.
    """
    if (yield from weight_hash(build.hosted.model)) != build.hosted.info.weight_hash:
        raise ParentChangedError(
            "the loaded weights are no longer those that the edit was made for: the parent's files were "
            "changed in place; restore them and load the model again",
            expected=build.hosted.info.weight_hash,
        )
    loaded: dict[str, Any] = build.hosted.model.state_dict()
    prefix = build.hosted.model.base_model_prefix
    for done, entry in enumerate(build.entries.values()):
        folder = build.hosted.folder if entry.file in build.reshaped else build.folder
        build.before[entry.name] = sha256_of(folder, entry)
        weight = loaded.get(entry.name, loaded.get(f"{prefix}.{entry.name}"))
        if weight is not None:
            stored = read_tensor(folder, entry).to(weight.dtype)
            if not torch.equal(stored, weight.cpu()):
                raise ParentChangedError(
                    f"{entry.name} in the parent's files is not what was loaded; load the model again",
                    tensor=entry.name,
                )
        yield (
            Progress(stage="check parent", done=done + 1, total=len(build.entries))
            if done % 50 == 0
            else None
        )
    build.after = dict(build.before)


def _patch(build: Build) -> Work:
    """Write the changed tensors, one a quantum: over their parents' bytes, or into a shard written anew."""
    changes = build.program.changes
    total = len(changes)
    written = write_weights(build.hosted.folder, build.folder, build.entries, build.program)
    for done, name in enumerate(written):
        yield Progress(stage="compile", done=min(done + 1, total), total=total, detail=name)
    with full_disk_refused():
        write_adapter(build.hosted, build.program, build.folder)
    build.exported = read_entries(build.folder)
    for change in changes:
        build.after[change.name] = sha256_of(build.folder, build.exported[change.name])
        yield None


def _attacked(build: Build, certificate: Certificate) -> Generator[Progress | None, None, Certificate]:
    """Attack the folder before it is signed, so that the word stands inside what is signed."""
    work = build.staging.evidence / "attack"
    work.mkdir()
    removal = yield from attacked(
        build.hosted,
        build.texts,
        build.command.edit.interventions,
        build.program.features,
        build.folder,
        work,
        training_steps=build.command.options.attack_steps,
    )
    return replace(certificate, removal=certified_only(removal, certificate.doubt))


def _quantised(build: Build, certificate: Certificate) -> Generator[Progress | None, None, Certificate]:
    """Write and measure GGUF files before the folder is signed; they are part of it."""
    command = build.command
    copies = yield from quantised_copies(
        build.hosted,
        build.retain,
        command.edit.interventions,
        build.program.features,
        build.folder,
        command.options.gguf,
        build.staging.evidence,
        edit=command.edit.name,
    )
    return replace(certificate, quantised=copies)


def _certificate(build: Build, findings: Findings) -> Certificate:
    command, measured = build.command, findings.measurements
    return Certificate(
        edit=command.edit.name,
        edit_hash=command.edit.content_hash,
        plan_hash=command.plan.plan_hash,
        parent_hash=command.plan.parent_hash,
        dtype=STORED_NAMES.get(build.stored_dtype, build.stored_dtype),
        measurements=measurements_of(build.program.calibration | measured),
        gates=judge(command.plan.gates, measured),
        changed_tensors=command.plan.changed_tensors,
        untouched_tensors_verified=int(measured["untouched_tensors_verified"]),
        environment={
            **findings.environment,
            "compute_dtype": build.hosted.info.dtype,
            **on_record(build.program.drawn),
            **build.texts.on_record,
        },
        text=build.retain.label,
        n_tokens=build.retain.n_tokens,
        caveats=command.plan.caveats,
        doubt=command.plan.doubt,
        sets=loaded_sets(build.hosted, command.edit),
    )


def _document(
    build: Build, parent: manifest.ParentRecord, certificate: Certificate
) -> Generator[Progress | None, None, tuple[ExportedFile, ...]]:
    """Write certificate, card, manifest, signature and digests, in this order; return all files."""
    command, folder = build.command, build.folder
    yield Progress(stage="sign" if command.signing_key else "document", done=0, total=1)
    signing_key = Path(command.signing_key) if command.signing_key and not certificate.failed else None
    with full_disk_refused():
        manifest.write_certificate(folder, certificate)
        card = model_card(build.hosted, command.edit, command.plan, certificate)
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        if signing_key:
            signing.write_public_key(signing_key, folder)
    files = yield from manifest.describe_files(folder)
    with full_disk_refused():
        manifest.write_manifest(
            folder,
            hosted=build.hosted,
            edit=command.edit,
            plan=command.plan,
            sets=certificate.sets,
            parent=parent,
            entries=tuple(build.exported.values()),
            after=build.after,
            drawn=build.program.drawn,
            files=files,
        )
    if signing_key:
        yield from signing.sign_folder(signing_key, folder)
    known = {file.path for file in files}
    files += yield from manifest.describe_files(folder, skip=tuple(known))
    with full_disk_refused():
        manifest.write_sums(folder, files)
    known = {file.path for file in files}
    files += yield from manifest.describe_files(folder, skip=tuple(known))
    return tuple(sorted(files, key=lambda file: file.path))


def _publish(
    build: Build, certificate: Certificate, files: tuple[ExportedFile, ...]
) -> Generator[Progress | None, None, Export]:
    """Rename into place, as the last act; or keep or drop what missed a gate."""
    command, target = build.command, build.staging.target
    if certificate.failed:
        if command.keep_rejected:
            yield from build.staging.publish(_rejected(target))
        raise missed_gates(
            certificate, kept=command.keep_rejected, name=command.name, exact=build.program.exact
        )
    yield from build.staging.publish(target)
    signed = any(file.path == signing.SIGNATURE_NAME for file in files)
    return Export(
        name=command.name,
        folder=str(target),
        certificate=certificate,
        files=files,
        signed=signed,
        signed_by=SignedBy() if signed else None,
    )


def _rejected(target: Path) -> Path:
    return target.with_name(f"{target.name}.rejected")


HANDLERS: dict[type, Handler] = {CompileExport: compile_export}
