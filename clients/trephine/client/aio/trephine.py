"""The client: one connection to one server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from google.protobuf.message import Message

from trephine.client import requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.audits import AsyncAuditors, AsyncAudits
from trephine.client.aio.blocking import run_blocking
from trephine.client.aio.circuit import AsyncCircuit, AsyncCircuits
from trephine.client.aio.dataset_circuits import AsyncDatasetCircuits
from trephine.client.aio.edits import AsyncEdits, AsyncExports
from trephine.client.aio.evaluation import AsyncEvaluation
from trephine.client.aio.features import AsyncFeatureIndexes
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.models import AsyncModels
from trephine.client.aio.operations import AsyncOperation, AsyncOperations
from trephine.client.aio.replacements import AsyncReplacements, AsyncReplacementSet
from trephine.client.aio.source_sharing import shared
from trephine.client.aio.spurious_removal import AsyncSpuriousRemovals
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.descriptions import described
from trephine.client.downloads import OnBytes, require_absent
from trephine.client.errors import ExportTargetExistsError, ResourceNotFoundError
from trephine.client.export_names import export_id_for
from trephine.client.export_notices import tell_doubt, tell_reuse
from trephine.client.leases import Lease
from trephine.client.results import value_of
from trephine.client.selection import Selection
from trephine.client.sources import source_of
from trephine.client.types import (
    AuditReport,
    CircuitInfo,
    Edit,
    EvaluationInfo,
    Export,
    ModelInfo,
    ModelState,
    Proposal,
    ReplacementSetInfo,
)
from trephine.client.watches import OnProgress


class AsyncTrephine:
    """A connection. Made by `trephine.client.aio.connect`; ends with `close` or its `async with` block."""

    def __init__(self, wire: AsyncWire, lease: Lease | None = None) -> None:
        self._wire = wire
        self._lease = lease
        self.models = AsyncModels(wire)
        self.circuits = AsyncCircuits(wire)
        self.dataset_circuits = AsyncDatasetCircuits(wire)
        self.spurious_removals = AsyncSpuriousRemovals(wire)
        self.replacements = AsyncReplacements(wire)
        self.features = AsyncFeatureIndexes(wire)
        self.edits = AsyncEdits(wire)
        self.exports = AsyncExports(wire)
        self.auditors = AsyncAuditors(wire)
        self.audits = AsyncAudits(wire)
        self.artifacts = AsyncArtifacts(wire)
        self.operations = AsyncOperations(wire, self._finish)

    def __repr__(self) -> str:
        return described(self, f"connected to {self._wire.endpoint.address}")

    async def __aenter__(self) -> AsyncTrephine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. A server started for it ends with its last client."""
        await self._wire.close()
        if self._lease is not None:
            self._lease.release()

    async def detach(self) -> None:
        """Let a server that was started for this client finish running operations after it has left."""
        if self._lease is not None:
            await run_blocking(self._lease.detach)

    async def load_model(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        device: str | None = None,
        name: str | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncModel:
        """Load a model, or use it if it is loaded already.

        Args:
            name_or_folder: A name (`smollm2`), an export (`exports/...`), or a folder (`./model`).
            dtype: `float32` (default), `bfloat16`, `float64`.
            device: `cpu` (default), `cuda`, `cuda:1`.
            name: Name to serve it under; unset: the source's own.
            adapter: PEFT adapter folder in a model root, merged in memory.
            revision: Of a folder in Hugging Face's cache: a commit, a prefix of it or a ref's name; unset:
                what is loaded under that name already, else `main`.
            on_progress: Called with every step.
        """
        if adapter is None and revision is None:
            ready = await self.loaded_model(name_or_folder, dtype=dtype, device=device, name=name)
            if ready is not None:
                return ready
        started = await self.start_load(
            name_or_folder, dtype=dtype, device=device, name=name, adapter=adapter, revision=revision
        )
        return await started.result(on_progress=on_progress)

    async def start_load(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        device: str | None = None,
        name: str | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[AsyncModel]:
        """Start loading a model; the arguments are those of `load_model`."""
        source = await shared(source_of(name_or_folder), self._lease)
        request = requests.load(
            source, name, request_id, dtype=dtype, device=device, adapter=adapter, revision=revision
        )
        message = await self._wire.call(self._wire.models.LoadModel, request)
        return AsyncOperation(self._wire, message, self._finish)

    async def loaded_model(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        device: str | None = None,
        name: str | None = None,
        as_it_is: bool = False,
    ) -> AsyncModel | None:
        """The model if it is loaded already, as asked for; None if it would have to be loaded.

        Args:
            name_or_folder: A name; None comes of a folder, as another may have been loaded under that name.
            dtype: Unset: `float32`.
            device: Unset: `cpu`.
            name: That it is served under; unset: the source's own.
            as_it_is: Of whatever dtype and on whatever device.
        """
        if source_of(name_or_folder).folder is not None:
            return None
        try:
            info = await self.models.get(name or os.fspath(name_or_folder))
        except ResourceNotFoundError:
            return None
        fits = as_it_is or (info.dtype == (dtype or "float32") and info.device == (device or "cpu"))
        return AsyncModel(self._wire, info) if info.state is ModelState.LOADED and fits else None

    async def model(self, name: str) -> AsyncModel:
        """A model that is loaded already."""
        return AsyncModel(self._wire, await self.models.get(name))

    async def export(
        self,
        edit: Edit | str,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        keep_rejected: bool = False,
        text: str | None = None,
        min_recovery: float | None = None,
        keep_shapes: bool = False,
        attack: bool = False,
        attack_steps: int | None = None,
        gguf: Sequence[str] = (),
        sigstore: bool = False,
        identity_token: str | None = None,
        export_id: str | None = None,
        on_progress: OnProgress | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Export:
        """Compile an edit into a plain checkpoint, certify it, and bring it home into `folder`.

        The server publishes it first; then every file comes into a temporary sibling of `folder`, is
        checked against its digest, and one rename puts the folder in its place. One whose certificate is
        inconclusive comes too, with a warning: its `passed` is false, and its `doubt` says why.

        Args:
            edit: A stored edit.
            folder: Must not exist.
            model: Loaded model to compile from; unset: the edit's own.
            keep_rejected: Keep a folder that misses a gate on the server, as `NAME.rejected`.
            text: Calibrates grafts and fits, and is measured on; unset: the built-in text.
            min_recovery: Of fitted parts, the share of the edit that must be carried; unset: 0.9.
            keep_shapes: Fit features into the matrices that are there instead of adding neurons.
            attack: Attack the result before it is signed; its certificate then says `removed`, `suppressed`
                or `inconclusive`.
            attack_steps: Of its training, benign and few-shot, 50 to 200; unset: 50.
            gguf: GGUF files to write and measure as well: `q8_0`, `q4_0`. Grafts then use no biases.
            sigstore: Sign with Sigstore, as the server's own identity, in place of its key.
            identity_token: Sign with Sigstore as whom this OpenID Connect token names. The server keeps it in
                memory until the export is done, and nowhere else.
            export_id: Name on the server; unset: from the folder's name and the digests of the edit and of
                these options. An export of that edit that exists there is used as it is, with a warning if
                you named it.
            on_progress: Called with every step on the server.
            on_bytes: Called with bytes received and bytes in all.

        Raises:
            ExportTargetExistsError: If the folder exists.
            EditNotExpressibleError: If weights cannot express the edit; the field is named.
            GateMissedError: If a measurement exceeds its planned bound; nothing was published.
            SigningIdentityError: If it is to be signed with Sigstore, and there is nobody to sign as.
            SigstoreUnreachableError: If Sigstore does not answer; nothing was published.
        """
        target = Path(folder)
        require_absent(target)
        stored = await self.edits.get(edit) if isinstance(edit, str) else edit
        chosen = export_id or export_id_for(
            target,
            stored,
            model=model,
            text=text,
            min_recovery=min_recovery,
            keep_shapes=keep_shapes,
            attack=attack,
            attack_steps=attack_steps,
            gguf=gguf,
            sigstore=sigstore,
            identity_token=identity_token,
        )
        export = await self.exports.published(chosen, stored)
        if export is None:
            try:
                started = await self.exports.start(
                    stored,
                    chosen,
                    model=model,
                    keep_rejected=keep_rejected,
                    text=text,
                    min_recovery=min_recovery,
                    keep_shapes=keep_shapes,
                    attack=attack,
                    attack_steps=attack_steps,
                    gguf=gguf,
                    sigstore=sigstore,
                    identity_token=identity_token,
                )
                export = await started.result(on_progress=on_progress)
            except ExportTargetExistsError:
                # The same command, given twice at once, was first; by a name of your own it may be any.
                export = None if export_id else await self.exports.published(chosen, stored)
                if export is None:
                    raise
        elif export_id is not None:
            tell_reuse(export)
        await self.exports.download(export, target, on_bytes=on_bytes)
        tell_doubt(export)
        return export

    async def audit(
        self,
        model: AsyncModel | str,
        auditor: str,
        *,
        seed: int | None = None,
        items: int | None = None,
        time_limit_seconds: float | None = None,
        parameters: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> AuditReport:
        """Run an auditor on a loaded model and wait for its report."""
        started = await self.audits.start(
            model.name if isinstance(model, AsyncModel) else model,
            auditor,
            seed=seed,
            items=items,
            time_limit_seconds=time_limit_seconds,
            parameters=parameters,
        )
        return await started.result(on_progress=on_progress)

    def _finish(self, message: Message) -> Any:
        kind = message.DESCRIPTOR.name
        if kind == "Model":
            return AsyncModel(self._wire, decode(ModelInfo, message))
        if kind == "Circuit":
            return AsyncCircuit(self._wire, decode(CircuitInfo, message))
        if kind == "EditProposal":
            proposal = decode(Proposal, message)
            return Selection(proposal=proposal, model=proposal.version.model)
        if kind == "ReplacementSet":
            return AsyncReplacementSet(self._wire, decode(ReplacementSetInfo, message))
        if kind == "ReplacementEvaluation":
            return AsyncEvaluation(self._wire, decode(EvaluationInfo, message))
        return value_of(message)
