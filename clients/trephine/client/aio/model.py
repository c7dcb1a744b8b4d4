"""A loaded model and everything that can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client import requests
from trephine.client.aio.circuit import AsyncCircuit
from trephine.client.aio.circuit_views import AsyncTraceableModel
from trephine.client.aio.dataset_circuits import AsyncDatasetDiscoverableModel
from trephine.client.aio.edit_composition import AsyncServedModel
from trephine.client.aio.features import AsyncExplorableModel
from trephine.client.aio.generation import AsyncGenerationStream
from trephine.client.aio.global_circuits import AsyncGloballyDiscoverableModel
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.replaceable import AsyncReplaceableModel
from trephine.client.aio.spurious_removal import AsyncCleanableModel
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit_requests import pruning_bounds
from trephine.client.decoding import decode
from trephine.client.descriptions import described, of_model
from trephine.client.requests import AnyEdit, Role, Row, ScoreRow
from trephine.client.selection import Selection
from trephine.client.set_ids import AnySet
from trephine.client.target_requests import graph_target
from trephine.client.types import (
    Ablation,
    Capabilities,
    CircuitInfo,
    Edit,
    Intervention,
    ModelInfo,
    Proposal,
    Pruning,
    Scores,
    Target,
    Token,
)
from trephine.client.watches import OnProgress
from trephine.v1 import model_service_pb2


class AsyncModel(
    AsyncReplaceableModel,
    AsyncDatasetDiscoverableModel,
    AsyncGloballyDiscoverableModel,
    AsyncExplorableModel,
    AsyncTraceableModel,
    AsyncServedModel,
    AsyncCleanableModel,
):
    """A model in an engine of its own."""

    def __init__(self, wire: AsyncWire, info: ModelInfo) -> None:
        self._wire = wire
        self.info = info

    def __repr__(self) -> str:
        return described(self, of_model(self.info))

    @property
    def name(self) -> str:
        """Resource name, `models/smollm2`."""
        return self.info.name

    def to_json(self) -> str:
        """What it is, in proto-JSON."""
        return self.info.to_json()

    async def capabilities(self) -> Capabilities:
        """What works for this model, and why the rest does not."""
        request = model_service_pb2.GetCapabilitiesRequest(model=self.name)
        return decode(Capabilities, await self._wire.call(self._wire.models.GetCapabilities, request))

    async def tokenize(self, text: str) -> tuple[Token, ...]:
        """Split a text exactly as prompts are split: no token is added."""
        request = requests.tokenize(self.name, text)
        response = await self._wire.call(self._wire.models.Tokenize, request)
        return tuple(decode(Token, token) for token in response.tokens)

    async def render_chat(
        self, turns: Sequence[tuple[Role, str]], *, add_generation_prompt: bool | None = None
    ) -> str:
        """Apply the chat template to (role, text) pairs; the result is a prompt."""
        request = requests.render_chat(self.name, turns, add_generation_prompt)
        response = await self._wire.call(self._wire.models.ApplyChatTemplate, request)
        return str(response.text)

    async def discover(
        self,
        prompt: str,
        *,
        target: Target,
        against: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncCircuit:
        """Find the circuit behind a next-token choice, or behind anything else that can be read off.

        Args:
            prompt: At least two tokens.
            target: Exactly one token (mind the leading space), or `#id`; or several logits, a feature, a
                direction of the stream, an attention score.
            against: The token that it is compared with; unset: the mean logit.
            on_progress: Called with every step.
            options: Those of `start_discover`.
        """
        operation = await self.start_discover(prompt, target=target, against=against, **options)
        return await operation.result(on_progress=on_progress)

    async def predict_discover(
        self, prompt: str, *, target: Target, against: str | None = None, **options: Any
    ) -> CircuitInfo:
        """Check a discovery and say what it would take: `seconds` and `peak_extra_bytes`; nothing is found.

        Args:
            prompt: At least two tokens.
            target: As `discover`.
            against: As `discover`.
            options: Those of `start_discover`.
        """
        options["validate_only"] = True
        operation = await self.start_discover(prompt, target=target, against=against, **options)
        predicted = await operation.result()
        return predicted.info

    async def start_discover(
        self,
        prompt: str,
        *,
        target: Target,
        against: str | None = None,
        positions: Sequence[int] = (),
        replacement: AnySet | None = None,
        beside: Sequence[AnySet] = (),
        layers: Sequence[int] | None = None,
        max_feature_nodes: int | None = None,
        min_attribution: float | None = None,
        prune: Pruning | None = None,
        edge_mass: float | None = None,
        verify_nodes: int | None = None,
        seed: int | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[AsyncCircuit]:
        """Start a discovery.

        Args:
            prompt: At least two tokens.
            target: Exactly one token, or `#id`; or another `Target`.
            against: The token that it is compared with; unset: the mean logit.
            positions: Where the target is read; -1 is the last. Empty: the last.
            replacement: Loaded replacement set whose features span the graph, by id, by name or as value;
                unset: neurons.
            beside: Further loaded sets whose features are nodes too, in the same layers; no two may
                reconstruct the same site. `neurons`: those of the MLPs that no set reconstructs.
            layers: Layers that are opened, as far as a set has them; the other MLPs become error nodes.
                Unset: all.
            max_feature_nodes: Unset 512.
            min_attribution: Choose features by hierarchical attribution: those whose absolute attribution, in
                units of what is explained, is at least this. Unset: by influence.
            prune: Store what is left after pruning; unset: everything.
            edge_mass: Share of each row's absolute mass that is kept as edges; unset 0.99.
            verify_nodes: Nodes ablated one at a time to measure the estimates; unset 128, 0 skips it.
            seed: Unset 0.
            request_id: The same id again returns the same operation.
            validate_only: Check and predict alone, as `predict_discover` does; the operation is done at once.
        """
        request = requests.discover(
            self.name,
            prompt,
            graph_target(target, against, positions),
            request_id,
            replacement=replacement,
            beside=beside,
            layers=layers,
            max_feature_nodes=max_feature_nodes,
            min_attribution=min_attribution,
            pruning=pruning_bounds(prune),
            edge_mass=edge_mass,
            verify_nodes=verify_nodes,
            seed=seed,
            validate_only=validate_only or None,
        )
        message = await self._wire.call(self._wire.circuits.DiscoverCircuit, request)
        return AsyncOperation(self._wire, message, self._circuit)

    async def propose(
        self,
        prompt: str,
        *,
        target: str,
        against: str | None = None,
        on_progress: OnProgress | None = None,
        **bounds: Any,
    ) -> Selection:
        """The smallest all-positions ablation that could ship, without discovering a circuit first.

        `bounds` are `min_drop`, `max_retain_kl`, `max_features`, `retain_text` and `request_id` as in
        `Circuit.start_shippable`.
        """
        request = requests.propose(
            bounds.pop("request_id", None),
            model=self.name,
            prompt=prompt,
            target=requests.target(target, against),
            **bounds,
        )
        message = await self._wire.call(self._wire.edits.ProposeEdit, request)
        operation = AsyncOperation(self._wire, message, self._selection)
        return await operation.result(on_progress=on_progress)

    async def ablate(
        self,
        prompt: str,
        interventions: Sequence[Intervention] = (),
        *,
        target: str,
        against: str | None = None,
        edit: Edit | str | None = None,
        controls: int = 99,
        seed: int | None = None,
        bound_positions: Sequence[int] = (),
        edits: Sequence[AnyEdit] = (),
    ) -> Ablation:
        """Measure what interventions do to the target, against matched random controls.

        Args:
            prompt: At least one token.
            interventions: At least one, unless `edit` is given.
            target: Exactly one token, or `#id`.
            against: The token that it is compared with; unset: the mean logit.
            edit: A stored edit whose interventions are used instead.
            controls: Sets of random features of the same layer, moved so far that they write as much on the
                prompt (for additions and projections: that usually write about as much); 0 skips them, and
                then there is no p-value.
            seed: Unset 0.
            bound_positions: Measure the same interventions bound to these positions beside.
            edits: Stored edits that are measured together, each at its strength, before the interventions.
        """
        what = requests.target(target, against)
        request = requests.ablate(
            self.name, prompt, what, interventions, edit, controls, seed, bound_positions, edits
        )
        return decode(Ablation, await self._wire.call(self._wire.effects.Ablate, request))

    def generate(
        self,
        prompt: str | Sequence[Row],
        interventions: Sequence[Intervention] = (),
        *,
        edits: Sequence[AnyEdit] = (),
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> AsyncGenerationStream:
        """Continue a prompt, or several rows with interventions of their own; tokens stream.

        Args:
            prompt: A text, or rows.
            interventions: For a single text.
            edits: Stored edits that a single text is served under; empty: the model's default ones.
            max_new_tokens: Unset 64.
            temperature: Unset 0, greedy.
            top_p: Unset 1.
            seed: Unset 0; each row draws from its own generator, seeded with this and its place.
        """
        rows = [Row(prompt, interventions, edits)] if isinstance(prompt, str) else prompt
        request = requests.generate(
            self.name,
            rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return AsyncGenerationStream(self._wire.stream(self._wire.text.Generate, request))

    def side_by_side(
        self,
        prompt: str,
        interventions: Sequence[Intervention] = (),
        *,
        edits: Sequence[AnyEdit] = (),
        **options: Any,
    ) -> AsyncGenerationStream:
        """Continue a prompt twice in one batch: row 0 by the model itself, row 1 with what is given.

        With neither interventions nor edits row 1 is what the model serves by default.
        """
        changed = Row(prompt, interventions, edits, plain=bool(interventions) and not edits)
        return self.generate([Row(prompt, plain=True), changed], **options)

    async def score(self, rows: Sequence[ScoreRow]) -> Scores:
        """Log-probabilities of given continuations, and what interventions do to them."""
        request = requests.score(self.name, rows)
        return decode(Scores, await self._wire.call(self._wire.text.Score, request))

    async def unload(self) -> None:
        """End its engine and free its memory."""
        request = model_service_pb2.UnloadModelRequest(name=self.name)
        await self._wire.call(self._wire.models.UnloadModel, request)

    def _circuit(self, message: Any) -> AsyncCircuit:
        return AsyncCircuit(self._wire, decode(CircuitInfo, message))

    def _selection(self, message: Any) -> Selection:
        return Selection(proposal=decode(Proposal, message), model=self.name)
