"""The retain text: long enough, split into windows, and measured against the plain model."""

from __future__ import annotations

import re

import pytest
import torch

from tests.builders import tiny_hosted
from tests.unit.engine.interventions import at, neuron
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import (
    Ablate,
    Condition,
    FeatureTarget,
    Intervention,
    Scale,
    Selector,
)
from trephine.domain.sites import FeatureRef
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import (
    BUILT_IN_TOKENS,
    WINDOW_TOKENS,
    WINDOWS_AT_ONCE,
    _on_neurons,
    built_in_text,
    plain_logits,
    plain_runs,
    retain_kl,
    retain_text,
    window_batches,
    window_logits,
)


@pytest.fixture(scope="module")
def hosted():
    """One tiny model for the module."""
    return tiny_hosted("llama")


def test_the_built_in_text_names_nobody_of_the_demonstration():
    """The text must not exercise what the edits of the demonstration remove."""
    assert not re.search(r"\b(Mary|John)\b", built_in_text())
    assert built_in_text().isascii()


def test_windows_are_consecutive_pieces_of_the_text(hosted):
    """Windows of at most 128 tokens, joined, are the text's own beginning."""
    retain = retain_text(hosted)
    joined = [token for window in retain.windows for token in window]
    assert all(1 < len(window) <= WINDOW_TOKENS for window in retain.windows)
    assert hosted.decode(joined) == built_in_text()[: len(hosted.decode(joined))]
    assert retain.n_tokens == len(joined) == BUILT_IN_TOKENS >= 1024


def test_a_callers_text_is_named_by_its_hash(hosted):
    """Two texts never share a label; the built-in one has a name."""
    one, two = retain_text(hosted, "some prose"), retain_text(hosted, "other prose")
    assert one.sha256 != two.sha256
    assert one.sha256 in one.label
    assert retain_text(hosted).label.startswith("retain-1 ")


def test_a_text_of_one_token_is_refused(hosted):
    """There is no position after the first to measure."""
    with pytest.raises(InvalidRequestError) as caught:
        retain_text(hosted, "T")
    assert caught.value.context["field"] == "retain_text"


def test_the_plain_answers_are_kept_for_the_next_command(hosted):
    """The second asking runs no forward pass."""
    first = finish(plain_logits(hosted, retain_text(hosted)))
    work = plain_logits(hosted, retain_text(hosted))
    with pytest.raises(StopIteration) as stop:
        next(work)
    assert stop.value.value is first


def test_windows_of_a_batch_are_equally_long():
    """Every window is in one batch, in order; none would be padded."""
    lengths = [5, 5, 5, 5, 5, 3, 3, 5]
    parts = list(window_batches([[0] * length for length in lengths]))
    assert [number for part in parts for number in part] == list(range(len(lengths)))
    assert [{lengths[number] for number in part} for part in parts] == [{5}, {5}, {3}, {5}]
    assert max(map(len, parts)) == WINDOWS_AT_ONCE


def test_a_run_that_reads_keeps_the_plain_answers_too(hosted):
    """One pass gives both; a second one computes no logits, and nothing above what is read."""
    retain, site = retain_text(hosted, "The dog went to a store. " * 40), neuron_site(1)
    for output in plain_runs(hosted, retain, [site]):
        assert all(values[site].shape[0] == len(logits) for values, logits in zip_rows(output))
    work = plain_logits(hosted, retain)
    with pytest.raises(StopIteration) as stop:
        next(work)
    for window, logits in zip(retain.windows, stop.value.value, strict=True):
        torch.testing.assert_close(logits, window_logits(hosted, window), rtol=1e-4, atol=3e-5)
    again = next(plain_runs(hosted, retain, [site]))
    assert {len(logits) for logits in again.logits} == {0}


def zip_rows(output):
    """Pair what was read with the logits, row by row."""
    return zip(output.values, output.logits, strict=True)


def test_damage_is_the_mean_over_positions(hosted):
    """Both figures are means over tokens, not over windows."""
    retain = retain_text(hosted, "The store gave John a drink to " * 30)
    edit = (neuron(1, 3, Ablate()), neuron(2, 7, Ablate()))
    measured = finish(retain_kl(hosted, retain, edit))
    parts = [kl_divergence(window_logits(hosted, w), window_logits(hosted, w, edit)) for w in retain.windows]
    assert len(parts) > 1
    assert measured.everywhere == pytest.approx(float(torch.cat(parts).mean()))
    assert measured.after_first == pytest.approx(float(torch.cat([p[1:] for p in parts]).mean()))
    assert measured.everywhere > 1e-6


def test_damage_is_kept_for_the_next_command(hosted):
    """The second asking about neurons runs nothing; another edit or another text does."""
    retain, edit = retain_text(hosted, "A drink of the store. " * 9), (neuron(1, 5, Ablate()),)
    first = finish(retain_kl(hosted, retain, edit))
    work = retain_kl(hosted, retain, edit)
    with pytest.raises(StopIteration) as stop:
        next(work)
    assert stop.value.value is first
    assert finish(retain_kl(hosted, retain, (neuron(1, 6, Ablate()),))) != first
    assert finish(retain_kl(hosted, retain_text(hosted, "A drink of Paris. " * 9), edit)) != first


def test_damage_by_a_set_is_measured_every_time():
    """Another set may have taken its name meanwhile; a condition on one counts as well."""
    of_set = FeatureRef(replacement="some-set", layer=0, index=1)
    ablated = Intervention(target=FeatureTarget(feature=of_set), operation=Ablate())
    assert not _on_neurons((ablated,))
    assert not _on_neurons((neuron(0, 1, Ablate(), condition=Condition(feature=of_set, at_least=0.0)),))
    assert _on_neurons((neuron(0, 1, Ablate()),))


def test_the_built_in_text_given_by_a_caller_is_the_built_in_text(hosted):
    """One text has one name and one length."""
    assert retain_text(hosted, built_in_text()) == retain_text(hosted)


def test_what_changes_nothing_costs_nothing(hosted):
    """A factor of 1 has a KL of exactly 0."""
    measured = finish(
        retain_kl(hosted, retain_text(hosted, "The store " * 9), (neuron(0, 1, Scale(factor=1.0)),))
    )
    assert measured.everywhere == measured.after_first == 0.0


def test_windows_without_the_selected_token_or_position_count_as_unchanged(hosted):
    """An intervention bound to what a window lacks does it no harm, and is no error."""
    retain = retain_text(hosted, " gave a drink to the store")
    absent = hosted.resolve_target(" Mary")
    for selector in (Selector(tokens=(absent,)), at(60)):
        measured = finish(retain_kl(hosted, retain, (neuron(0, 1, Ablate(), selector=selector),)))
        assert measured.everywhere == 0.0
