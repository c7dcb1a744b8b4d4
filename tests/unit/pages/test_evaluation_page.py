"""The page, table and JSON of an evaluation."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import StringIO

from tests.unit.replacement_values import evaluation, figure, layer_score, set_info
from trephine.domain.replacements import Dictionary
from trephine.pages.evaluation_page import LAYER_TITLES, evaluation_html
from trephine.pages.evaluation_table import evaluation_csv, evaluation_json

NASTY = "</script><img src=x onerror=alert(1)>\u202e\ud83d"


class Tags(HTMLParser):
    """Collects tag names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and refuse handlers."""
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.names.append(tag)


def page(**changes: object) -> str:
    return evaluation_html(replace(evaluation(), **changes), name="evaluations/e", create_time="now")


def test_the_page_says_what_beats_its_controls_and_what_does_not():
    """Claims either way, the controls' figures beside the set's, and the plots."""
    html = page()
    assert "beats it" in html
    assert "does not beat it" in html
    assert html.count("<svg") == 2
    assert 'class="frozen_decoder"' in html
    assert "random dictionary" in html
    assert "script-src 'none'" in unescape(html)
    assert "degraded" not in html.partition("</style>")[2]


def test_every_layer_shows_its_error_share():
    """Of the set with its interval, and of its controls; evaluations of before have empty cells."""
    layers = tuple(
        replace(score, error_share=figure(0.4321 + 0.1 * place))
        for place, score in enumerate(evaluation().layers)
    )
    html = page(layers=layers)
    assert all(shown in html for shown in ("0.4321", "0.3321 to 0.5321", "0.5321", "0.6321"))
    without = page(layers=tuple(replace(score, error_share=None) for score in layers))
    assert "0.4321" not in without
    assert "error share" in without


def test_controls_have_every_figure_that_the_set_has():
    """Nine a layer, alone, and three while all are spliced; what an older evaluation lacks has no row."""
    names = [name for name in LAYER_TITLES if name != "dead_share"]
    layers = [
        replace(
            score,
            dead_share=0.9001 + 0.01 * place,
            **{name: figure(100 * place + 10 + index + 0.5) for index, name in enumerate(names)},
        )
        for place, score in enumerate(evaluation().layers)
    ]
    html = page(layers=tuple(layers))
    for place in range(3):
        values = [f"{100 * place + 10 + index + 0.5:.4g}" for index in range(len(names))]
        shown = [f'<td class="number">{value}<' for value in (*values, f"{0.9001 + 0.01 * place:.4g}")]
        assert [cell for cell in shown if cell not in html] == []
    for score in evaluation().spliced:
        for value in (score.fvu.value, score.l0.value, score.dead_share):
            assert html.count(f'<td class="number">{value:.4g}<') == 2
    bare = {"fvu": None, "l0": None, "dead_share": None, "layers": ()}
    before = page(spliced=tuple(replace(score, **bare) for score in evaluation().spliced))
    assert "active features, mean of layers" in html
    assert "active features, mean of layers" not in before
    assert "while all are spliced" not in before


def test_a_degraded_set_is_called_so():
    """The flag is at the top, and the failed admission is told."""
    html = page(replacement=set_info(degraded=True))
    assert "degraded: it failed admission" in html
    assert "FVU 1.31 is not below 1" in html


def test_hostile_text_and_missing_numbers_stay_text():
    """No tag comes out of a name or caveat; NaN is a dash; a page without layers is a page."""
    info = replace(set_info(), name=NASTY, model=NASTY)
    broken = replace(layer_score(Dictionary.GIVEN, 0.3), fvu=figure(float("nan")))
    html = page(replacement=info, caveats=(NASTY,), text=NASTY, layers=(broken,))
    tags = Tags()
    tags.feed(html)
    assert "img" not in tags.names
    assert "script" not in tags.names
    assert "–" in html
    html.encode()
    assert "nothing is claimed" in page(claims=(), layers=(), spliced=(), depths=())


def test_the_table_has_a_line_for_every_figure():
    """3 layers of 9 figures, 2 spliced of 14 and 3 by layer, 2 depths of 2; no number is an empty cell."""
    rows = list(csv.DictReader(StringIO(evaluation_csv(evaluation()))))
    assert len(rows) == 3 * 9 + 2 * (14 + 3) + 2 * 2
    assert [row["value"] for row in rows if row["scope"] == "layer 0 of all spliced"][:3] == [
        "0.39",
        "1.95",
        "0.195",
    ]
    first = rows[0]
    assert (first["scope"], first["dictionary"], first["figure"]) == ("layer 0", "given", "fvu")
    assert (float(first["value"]), float(first["low"])) == (0.3, 0.3 - 0.1)
    nothing = replace(evaluation(), layers=(replace(evaluation().layers[0], fvu=figure(float("inf"))),))
    assert next(csv.DictReader(StringIO(evaluation_csv(nothing))))["value"] == ""
    before = replace(evaluation(), layers=(replace(evaluation().layers[0], error_share=None),))
    assert "layer 0,given,error_share" not in evaluation_csv(before)


def test_json_holds_everything_and_is_json():
    """The set's admission is inside; what is no number is null."""
    odd = replace(evaluation(), seconds=float("nan"))
    found = json.loads(evaluation_json(odd, name="evaluations/e"), parse_constant=lambda text: 1 / 0)
    assert found["name"] == "evaluations/e"
    assert found["replacement"]["admission"]["layers"][0]["fvu"] == 0.3
    assert found["seconds"] is None
    assert found["claims"][1]["beats"] is False
