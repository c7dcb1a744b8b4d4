"""Domain values cross as trees and come back equal, with their own checks run."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trephine.domain
from trephine.domain.activations import Activations
from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import (
    CorruptRecordError,
    InternalError,
    InvalidRequestError,
    NonFiniteValueError,
    ShapeMismatchError,
    error_types,
)
from trephine.domain.findings import AuditOutcome
from trephine.domain.generation import Completion, Generate, Row
from trephine.domain.interventions import Intervention
from trephine.domain.operations import OperationRecord
from trephine.domain.tokens import Token
from trephine.ipc import codec
from trephine.ipc.frames import Frame, FrameKind, FrameParser, pack

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def across(value: Any) -> Any:
    """Carry a value through real frames."""
    parser = FrameParser()
    for part in pack(Frame(kind=FrameKind.RESULT, id=1, body=codec.to_tree(value))):
        parser.feed(part)
    [frame] = parser.frames()
    return codec.from_tree(type(value), frame.body)


def valid_text() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def interventions(draw: st.DrawFn) -> Intervention:
    """Any intervention that the language can say."""
    from trephine.domain import interventions as language
    from trephine.domain.sites import FeatureRef, Site, SiteKind

    feature = st.builds(
        FeatureRef, replacement=valid_text(), layer=st.integers(0, 99), index=st.integers(0, 10**6)
    )
    site = st.builds(Site, kind=st.sampled_from(SiteKind), layer=st.integers(0, 99))
    vector = st.lists(finite, min_size=1, max_size=5).filter(any).map(tuple)
    places = st.none() | st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(tuple)
    return draw(
        st.builds(
            Intervention,
            target=st.one_of(
                st.builds(language.FeatureTarget, kind=st.just("feature"), feature=feature),
                st.builds(language.DirectionTarget, kind=st.just("direction"), site=site, vector=vector),
                st.builds(language.SiteTarget, kind=st.just("site"), site=site),
            ),
            operation=st.one_of(
                st.just(language.Ablate()),
                st.just(language.ProjectOut()),
                st.builds(language.Scale, kind=st.just("scale"), factor=finite),
                st.builds(language.SetTo, kind=st.just("set"), value=finite),
                st.builds(language.Clamp, kind=st.just("clamp"), low=finite, high=st.none()),
                st.builds(language.Add, kind=st.just("add"), amount=finite),
                st.builds(language.AddNormScaled, kind=st.just("add_norm_scaled"), fraction=finite),
                st.builds(language.MeanAblate, kind=st.just("mean_ablate"), text=valid_text()),
                st.builds(language.Resample, kind=st.just("resample"), donor=valid_text()),
            ),
            selector=st.builds(
                language.Selector,
                positions=places,
                tokens=places,
                phases=st.sampled_from([tuple(language.Phase), (language.Phase.PROMPT,)]),
            ),
            mode=st.builds(
                language.Mode,
                last_layer=st.none() | st.integers(0, 99),
                patterns=st.sampled_from(language.PatternMode),
                heads=st.lists(
                    st.builds(
                        language.HeadInput,
                        layer=st.integers(0, 9),
                        head=st.integers(0, 9),
                        role=st.sampled_from(["q", "k"]),
                    ),
                    max_size=2,
                ).map(tuple),
            ),
            condition=st.none()
            | st.builds(language.Condition, feature=feature, at_least=finite | st.just(float("inf"))),
            error_term=st.sampled_from(language.ErrorTerm),
            label=valid_text(),
        )
    )


@given(interventions())
@settings(max_examples=100, deadline=None)
def test_every_intervention_comes_back_equal(intervention: Intervention) -> None:
    """The whole intervention language crosses unchanged."""
    assert across(intervention) == intervention


arrays = st.binary(max_size=64).map(lambda data: Array(dtype="uint8", shape=(len(data),), data=data))
texts = valid_text()
tokens = st.builds(Token, id=st.integers(0, 10**6), raw=st.binary(max_size=8), display=texts)


@given(st.builds(Activations, tokens=st.lists(tokens, max_size=3).map(tuple), values=arrays))
@settings(max_examples=40, deadline=None)
def test_arrays_and_token_bytes_come_back_equal(value: Activations) -> None:
    """Raw bytes survive, in arrays and in tokens that are no valid text."""
    assert across(value) == value


RESULTS = [Completion, AuditOutcome, OperationRecord, Progress]


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_results_come_back_equal(kind: type, data: st.DataObject) -> None:
    """Results, stored records and outcomes of auditors cross unchanged."""
    value = data.draw(st.builds(kind))
    # Compared as text, because NaN is not equal to itself and crosses all the same.
    assert repr(across(value)) == repr(value)


def test_every_command_of_the_domain_is_registered() -> None:
    """A command that is added to the domain but not to the codec is noticed."""
    for module in pkgutil.iter_modules(trephine.domain.__path__, "trephine.domain."):
        importlib.import_module(module.name)
    names = {c.__name__ for c in Command.__subclasses__() if c.__module__.startswith("trephine.domain")}
    assert {command.__name__ for command in codec.ENGINE_COMMANDS} == names


@pytest.mark.parametrize("command", codec.ENGINE_COMMANDS, ids=lambda command: command.__name__)
def test_every_command_has_types_that_cross(command: type[Command[Any, Any]]) -> None:
    """For every command, its own type, its result's and its events' can be read from a tree."""
    for kind in (command, command.result_type(), command.event_type()):
        with pytest.raises(CorruptRecordError):
            codec.from_tree(kind, "not a tree of this type")


def test_an_unknown_command_is_refused() -> None:
    """A name outside the table is an error of the request, and so is one outside a narrower table."""
    with pytest.raises(InvalidRequestError, match="LaunchMissiles"):
        codec.command_from_tree("LaunchMissiles", {})
    with pytest.raises(InvalidRequestError):
        codec.command_from_tree("Generate", {}, codec.by_name(()))


def test_a_wrong_field_is_named_and_its_value_is_not_shown() -> None:
    """The error of a bad command names the path; the value, maybe a prompt, stays out of it."""
    with pytest.raises(InvalidRequestError) as caught:
        codec.command_from_tree("Generate", {"rows": [{"prompt": ["secret"]}]})
    assert caught.value.context["field"] == "rows.0.prompt"
    assert "secret" not in str(caught.value)


def test_checks_of_the_domain_run_on_what_arrives() -> None:
    """A NaN strength or an array of a wrong size cannot enter through a frame."""
    scale = {"kind": "scale", "factor": float("nan")}
    target = {"kind": "feature", "feature": {"layer": 0, "index": 0}}
    with pytest.raises(NonFiniteValueError):
        codec.from_tree(Intervention, {"target": target, "operation": scale})
    with pytest.raises(ShapeMismatchError):
        codec.from_tree(Array, {"dtype": "float32", "shape": [3], "data": b"123"})


def test_a_result_that_is_another_type_is_corrupt() -> None:
    """A peer that answers with the wrong thing is noticed."""
    with pytest.raises(CorruptRecordError, match="Circuit"):
        codec.from_tree(Circuit, {"prompt": "x"})


@pytest.mark.parametrize("kind", error_types(), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_its_type(kind: type) -> None:
    """Every typed error keeps type, message and the types of its context."""
    error = kind("what to do", field="rows", layer=3, share=0.5, fatal=True)
    again = codec.error_from_tree(codec.error_to_tree(error))
    assert type(again) is kind
    assert again.message == "what to do"
    assert again.context == {"field": "rows", "layer": 3, "share": 0.5, "fatal": True}


@pytest.mark.parametrize("tree", [None, 3, {}, {"message": 1}, {"message": "m", "reason": "NO_SUCH"}])
def test_what_is_no_error_becomes_an_internal_error(tree: object) -> None:
    """A peer cannot make the decoder of errors fail."""
    assert type(codec.error_from_tree(tree)) is InternalError


def test_a_large_array_is_not_copied_by_the_codec() -> None:
    """The bytes of an array in a tree are the array's own."""
    array = Array(dtype="uint8", shape=(1 << 20,), data=bytes(1 << 20))
    tree = codec.to_tree(array)
    assert tree["data"] is array.data
    assert codec.from_tree(Array, tree).data is array.data


def test_default_fields_may_be_left_out() -> None:
    """Older peers may leave fields out that have defaults."""
    command = codec.command_from_tree("Generate", {"rows": [{"prompt": "x"}]})
    assert command == Generate(rows=(Row(prompt="x"),))
