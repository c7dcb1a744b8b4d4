"""Activations over a text as a page."""

from __future__ import annotations

from html.parser import HTMLParser

from trephine.client.types import FeatureRef, Token, Version
from trephine.client.types.features import Activations, FeatureActivations

NASTY = '</span><script>alert(1)</script>" onload="x\u202e\x1b['


class Spans(HTMLParser):
    """Collects tags, and what stands on and in spans."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.spans: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.add(tag)
        if tag == "span":
            self.spans.append(dict(attrs))


def activations(
    values: tuple[float, ...], *, degraded: bool = False, label: str = "", caveats: tuple[str, ...] = ()
) -> Activations:
    feature = FeatureRef(replacement="small", layer=1, index=5)
    one = FeatureActivations(feature=feature, values=values, label=label, degraded=degraded)
    texts = (" a", NASTY, " c", " d")
    tokens = tuple(Token(id=i, raw=b"", display=text) for i, text in enumerate(texts))
    version = Version(model="models/tiny", weight_hash="w")
    return Activations(tokens=tokens, features=(one,), version=version, caveats=caveats)


def test_tokens_are_coloured_by_their_share_of_the_peak():
    """The strongest is full, half of it half, a negative one has the other colour, silence is plain."""
    page = Spans()
    page.feed(activations((0.0, 4.0, -2.0, 0.001)).html())
    assert [span["title"] for span in page.spans] == ["0", "4", "-2", "0.001"]
    styles = [span.get("style") for span in page.spans]
    assert styles[0] is None
    assert styles[3] is None
    assert str(styles[1]).endswith(",1.00)")
    assert str(styles[2]).endswith(",0.50)")
    assert str(styles[1]).partition(",")[0] != str(styles[2]).partition(",")[0]


def test_what_stands_in_tokens_and_labels_stays_text():
    """No tag and no control character comes out of either; a number that is none is no colour."""
    html = activations((0.0, 1.0, float("nan"), float("inf")), label=NASTY).html()
    page = Spans()
    page.feed(html)
    assert page.tags == {"html", "head", "meta", "title", "body", "section", "h3", "p", "span"}
    assert len(page.spans) == 4
    assert not {"\u202e", "\x1b"} & set(html)
    assert "default-src 'none'" in html


def test_a_degraded_set_is_called_so():
    """Where it failed admission, and only there; notebooks show the same blocks."""
    assert "failed admission" in activations((0.0, 1.0, 0.0, 0.0), degraded=True).html()
    passed = activations((0.0, 1.0, 0.0, 0.0))
    assert "failed admission" not in passed.html()
    assert passed._repr_html_() in passed.html()


def test_what_a_reader_must_know_stands_above():
    """Caveats come first, and stay text."""
    html = activations((0.0, 1.0, 0.0, 0.0), caveats=(f"trained with {NASTY}",))._repr_html_()
    page = Spans()
    page.feed(html)
    assert page.tags == {"section", "h3", "p", "span"}
    assert html.startswith("<p>trained with ")
