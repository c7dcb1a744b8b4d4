"""Every reader against the library that wrote its format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.formats import rows
from tests.replacement_fixtures import Fixture, computed, differences, fixtures
from trephine.domain.replacements import SetFormat

TOLERANCE = 1e-5
"""float32 sums over 40 features in another order: 40 roundings of 6e-8, relative to the largest value."""


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: f"{fixture.format.value}-{fixture.name}")
def test_values_are_those_of_the_library_that_wrote_the_file(fixture: Fixture) -> None:
    """Encode, decode, forward with skip, and error agree to 1e-5."""
    assert fixture.open().format is fixture.format
    for name, difference in differences(fixture).items():
        assert difference <= TOLERANCE, name


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: f"{fixture.format.value}-{fixture.name}")
def test_the_support_is_where_the_library_has_activations(fixture: Fixture) -> None:
    """What counts as active is exactly what the library's activations show."""
    expected = fixture.expected["features"]
    stacked = expected.ndim == 3
    x = fixture.expected["x"] if stacked else fixture.expected["x"][None]
    active = [
        reader.read().encode(each).active for reader, each in zip(fixture.open().layers, x, strict=True)
    ]
    assert torch.equal(torch.stack(active) if stacked else active[0], expected != 0)


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: f"{fixture.format.value}-{fixture.name}")
def test_directions_make_up_what_the_layer_computes(fixture: Fixture) -> None:
    """Pre-activations move along the encoders, outputs are sums of decoders, a few features are a slice."""
    expected = fixture.expected
    x = expected["x"] if expected["x"].ndim == 3 else expected["x"][None]
    for reader, each in zip(fixture.open().layers, x, strict=True):
        layer, chosen = reader.read(), [0, 7, 31]
        code = layer.encode(each)
        torch.testing.assert_close(layer.encode_features(each, chosen), code.activations[:, chosen])
        read = (each - code.centre) / code.scale
        moved = (read[1:] - read[:1]) @ layer.encoders(chosen).T
        torch.testing.assert_close(moved, (code.pre[1:] - code.pre[:1])[:, chosen], atol=1e-4, rtol=1e-4)
        everything = list(range(layer.info.d_sae))
        written = layer.decode(code)
        for site, values in written.items():
            summed = code.activations @ layer.decoders(everything, site) * code.scale_out
            offset = (values - summed - code.centre_out) / code.scale_out
            torch.testing.assert_close(offset, offset[:1].expand_as(offset), atol=1e-4, rtol=1e-4)
        squares = sum(layer.decoders(everything, site).pow(2).sum(1) for site in layer.info.sites_out)
        torch.testing.assert_close(layer.decoder_norms(), torch.as_tensor(squares).sqrt())


def test_every_format_has_a_fixture() -> None:
    """A format that is added without its evidence fails here."""
    assert {fixture.format for fixture in fixtures()} == set(SetFormat) - {SetFormat.AUTO}


def test_a_fixture_would_show_a_lost_skip_path() -> None:
    """The comparison can fail: what is compared differs between with and without skip."""
    fixture = Fixture(format=SetFormat.SAELENS, name="skip_transcoder")
    assert float((computed(fixture)["decoded"] - fixture.expected["forward"]).abs().max()) > 0.1


def test_the_page_of_formats_lists_every_fixture_as_it_is() -> None:
    """`docs/formats.md` holds the generated table; the differences alone may vary between machines."""
    page = (Path(__file__).parents[4] / "docs" / "formats.md").read_text(encoding="utf-8")
    listed = [tuple(line.strip("| ").split(" | ")) for line in page.splitlines() if line.startswith("| ")]
    shown = {(*cells[:6], cells[7]) for cells in listed if len(cells) == 8}
    for row in rows():
        assert (*row.cells[:6], row.cells[7]) in shown, f"{row.fixture}: run python -m benchmarks.formats"
    assert len(shown) == len(fixtures()) + 2  # the heading and its rule
