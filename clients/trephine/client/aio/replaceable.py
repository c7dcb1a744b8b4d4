"""What a model can be asked about replacement sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import replacement_requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.replacements import AsyncReplacements, AsyncReplacementSet
from trephine.client.aio.source_sharing import shared
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.replacement_requests import NO_RECIPE
from trephine.client.sources import REPLACEMENT_SET, source_of
from trephine.client.types import FitReport, ModelInfo, ReplacementSetInfo
from trephine.client.watches import OnProgress


class AsyncReplaceableModel:
    """What a model can be asked about replacement sets; a part of `AsyncModel`."""

    _wire: AsyncWire
    info: ModelInfo

    async def replacements(self) -> tuple[AsyncReplacementSet, ...]:
        """The sets beside it; the model's own neurons are always there and are not listed."""
        found = await AsyncReplacements(self._wire).list(self.info.name)
        return tuple(AsyncReplacementSet(self._wire, one) for one in found)

    async def replacement(self, name: str) -> AsyncReplacementSet:
        """A set that is loaded already."""
        resource = replacement_requests.set_name(self.info.name, name)
        return await AsyncReplacements(self._wire).get(resource)

    async def load_replacements(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncReplacementSet:
        """Load a replacement set beside the model, admit it, and wait for that.

        Args:
            name_or_folder: A set in a replacement root (`smollm2-135m-tc`), or a folder (`./my-set`).
            on_progress: Called with every step.
            options: Those of `start_load_replacements`.

        Raises:
            AdmissionFailedError: If its figures are not what it claims; the message holds them.
        """
        started = await self.start_load_replacements(name_or_folder, **options)
        return await started.result(on_progress=on_progress)

    async def start_load_replacements(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        name: str | None = None,
        format: str | None = None,
        memory_budget_bytes: int | None = None,
        accept_degraded: bool = False,
        allow_unverified: bool = False,
        request_id: str | None = None,
    ) -> AsyncOperation[AsyncReplacementSet]:
        """Start loading a replacement set.

        Args:
            name_or_folder: A set in a replacement root, or a folder of this machine.
            name: What its features are addressed by; unset: the folder's own name.
            format: `saelens`, `circuit_tracer`, ...; unset: told from the files.
            memory_budget_bytes: Resident weights at most; unset: half of what is free.
            accept_degraded: Load it even if it fails admission, with a flag that every result carries.
            allow_unverified: Load a format for which no writer could be obtained to test against.
            request_id: The same id again returns the same operation.
        """
        source = await shared(source_of(name_or_folder, REPLACEMENT_SET), self._wire.lease)
        request = replacement_requests.load_set(
            self.info.name,
            source,
            name,
            format,
            request_id,
            memory_budget_bytes=memory_budget_bytes,
            accept_degraded=accept_degraded,
            allow_unverified=allow_unverified,
        )
        message = await self._wire.call(self._wire.replacements.LoadReplacementSet, request)
        return AsyncOperation(self._wire, message, self._replacement_set)

    async def fit_replacements(
        self,
        set_id: str,
        *,
        corpus: str | os.PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
        **recipe: Any,
    ) -> FitReport:
        """Fit a replacement set offline and wait for it; `load_replacements(set_id)` then loads it.

        Args:
            set_id: Name of the set; must not exist in the server's replacement root.
            corpus: A text file, a JSONL file with a `text` column, or a datasets folder. Unset: the
                model's own samples.
            on_progress: Called with every step.
            recipe: `request_id`, `corpus_name`, and what `predict_fit` takes.
        """
        started = await self.start_fit_replacements(set_id, corpus=corpus, **recipe)
        return await started.result(on_progress=on_progress)

    async def start_fit_replacements(
        self,
        set_id: str,
        *,
        corpus: str | os.PathLike[str] | None = None,
        corpus_name: str | None = None,
        request_id: str | None = None,
        **recipe: Any,
    ) -> AsyncOperation[FitReport]:
        """Start a fit; it goes on from its checkpoints after any crash. See `fit_replacements`."""
        path = None if corpus is None else Path(corpus).expanduser()
        name = corpus_name or ("" if path is None else path.name)
        sent = "" if path is None else await self._send_corpus(path)
        request = replacement_requests.fit(self.info.name, set_id, sent, name, request_id, **recipe)
        message = await self._wire.call(self._wire.replacements.FitReplacementSet, request)
        return AsyncOperation(self._wire, message, lambda result: decode(FitReport, result))

    async def predict_fit(
        self,
        set_id: str | None = None,
        *,
        corpus: str | os.PathLike[str] | None = None,
        kind: str | None = None,
        site: str | None = None,
        layers: Sequence[int] | None = None,
        d_sae: int | None = None,
        k: int | None = None,
        tokens: int | None = None,
        context_tokens: int | None = None,
        batch_tokens: int | None = None,
        lr: float | None = None,
        dead_after_tokens: int | None = None,
        warm_start: bool | None = None,
        end_to_end_tokens: int | None = None,
        end_to_end_lr: float | None = None,
        local_control: bool | None = None,
        seed: int | None = None,
    ) -> FitReport:
        """Check a fit and say what it would take; nothing is fitted.

        Args:
            set_id: Name of the set, refused if it is taken; unset: not checked.
            corpus: As `fit_replacements` takes it, sent as it would be. Unset: the model's own samples.
            kind: `transcoder` (unset), `skip_transcoder`, `sae`, `cross_layer_transcoder`.
            site: Input site, an SAE's only one; unset `mlp_in`.
            layers: Unset: all.
            d_sae: Features of a layer; unset 2048.
            k: Active features per position that are aimed at; unset 32.
            tokens: Training tokens; unset 1,000,000.
            context_tokens: Unset 128.
            batch_tokens: Unset 2048.
            lr: Learning rate; unset 1e-3.
            dead_after_tokens: When a silent feature takes part in the auxiliary loss; unset 200,000.
            warm_start: Start transcoders from the MLP's own neurons; unset yes.
            end_to_end_tokens: Tokens of the phase through the whole model; unset 0, which skips it.
            end_to_end_lr: Its learning rate; unset 5e-4.
            local_control: Train a copy on with the local loss, to compare; unset yes.
            seed: Unset 0.
        """
        recipe = {name: value for name, value in locals().items() if name not in NO_RECIPE}
        sent = "" if corpus is None else await self._send_corpus(Path(corpus).expanduser())
        request = replacement_requests.fit(self.info.name, set_id or "", sent, "", None, **recipe)
        request.validate_only = True
        message = await self._wire.call(self._wire.replacements.FitReplacementSet, request)
        operation = AsyncOperation(self._wire, message, lambda result: decode(FitReport, result))
        return await operation.result()

    async def _send_corpus(self, path: Path) -> str:
        if path.is_dir():
            return await shared(source_of(path, REPLACEMENT_SET), self._wire.lease)
        media_type = replacement_requests.corpus_media_type(path)
        return await AsyncArtifacts(self._wire).upload(path, media_type=media_type)

    def _replacement_set(self, message: Any) -> AsyncReplacementSet:
        return AsyncReplacementSet(self._wire, decode(ReplacementSetInfo, message))
