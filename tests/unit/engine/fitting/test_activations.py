import pytest
import torch

from tests.builders import tiny_hosted
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.activations import (
    ActivationStream,
    chunk_rows,
    plan,
    read_sites,
)
from trephine.engine.runs.rows import RowInput, run_rows

SITES = (Site(kind=SiteKind.MLP_IN, layer=0), Site(kind=SiteKind.MLP_OUT, layer=1))
ROWS = torch.randint(3, 200, (40, 12), generator=torch.Generator().manual_seed(0))


def test_activations_are_the_models_own():
    """What is trained on is what the engine reads at the site, position 0 left out."""
    hosted = tiny_hosted("gemma2", n_layers=2)
    values = read_sites(hosted, ROWS[:3], SITES)
    read = run_rows(hosted, [RowInput(row) for row in ROWS[:3].tolist()], reads=SITES).values
    for site in SITES:
        expected = torch.cat([row[site][1:] for row in read])
        assert torch.allclose(values[site], expected, atol=1e-5)


@pytest.mark.parametrize(("tokens", "batch"), [(1000, 64), (100_000, 512), (50, 512), (4096, 2048)])
def test_a_plan_covers_the_tokens(tokens: int, batch: int):
    """Chunks hold the tokens asked for, up to a context each, in batches of about the size asked for."""
    cut = plan(tokens=tokens, batch_tokens=batch, positions=31, bytes_per_token=1000)
    assert tokens <= cut.tokens(cut.chunks) <= tokens + 31 * cut.chunks
    assert cut.batch_tokens == pytest.approx(min(batch, tokens), rel=0.35)


def test_a_plan_stays_within_memory():
    """Wide activations make smaller chunks, down to a single batch."""
    cut = plan(tokens=1_000_000, batch_tokens=1000, positions=100, bytes_per_token=10**9)
    assert cut.batches == 1
    assert cut.contexts == 10
    assert cut.chunks == 1000


def test_the_corpus_is_used_up_before_it_repeats():
    """Chunks run through a permutation of all contexts, then through another one."""
    seen = [row for number in range(6) for row in chunk_rows(10, number, 5, seed=3)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == sorted(seen[20:]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_chunk_is_a_function_of_its_number():
    """The same chunk holds the same batches whatever ran before; another seed holds others."""
    hosted = tiny_hosted("llama", n_layers=2)
    cut = plan(tokens=800, batch_tokens=50, positions=11, bytes_per_token=100)
    stream = ActivationStream(hosted=hosted, rows=ROWS, sites=SITES, plan=cut, seed=0)
    first = list(stream.chunk(1))
    list(stream.chunk(0))
    again = list(stream.chunk(1))
    assert len(first) == cut.batches
    assert all(torch.equal(a[site], b[site]) for a, b in zip(first, again, strict=True) for site in SITES)
    other = ActivationStream(hosted=hosted, rows=ROWS, sites=SITES, plan=cut, seed=1)
    assert not torch.equal(next(iter(other.chunk(1)))[SITES[0]], first[0][SITES[0]])
