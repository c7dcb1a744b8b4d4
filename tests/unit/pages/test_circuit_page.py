"""A circuit's page, read without a browser: it holds the JSON's graph, and runs its own scripts alone."""

from __future__ import annotations

import json
import re
from array import array
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest

from tests.global_circuits import global_circuit
from tests.layered_circuits import layered
from tests.synthetic_circuits import synthetic_circuit, whole
from tests.unit.pages.circuits import everything, hostile_circuit
from tests.unit.pages.test_feature_page import described
from trephine.app.circuits.pruning import prune
from trephine.domain.global_figures import Measured
from trephine.domain.sites import FeatureRef
from trephine.domain.standings import Standing
from trephine.domain.targets import TargetKind
from trephine.pages.circuit_data import page_data
from trephine.pages.circuit_json import circuit_json
from trephine.pages.circuit_page import circuit_html

ASSETS = files("trephine.pages") / "assets"


class Scripts(HTMLParser):
    """Collects elements, attributes, and whole texts of scripts by type."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self._type: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._type = dict(attrs).get("type", "") if tag == "script" else None

    def handle_data(self, data):
        if self._type is not None:
            self.scripts.append((self._type, data))

    def handle_endtag(self, tag):
        self._type = None


def integers(column: tuple[int, str]) -> list[int]:
    width, text = column
    return list(array("h" if width == 16 else "i", b64decode(text)))


def floats(column: str) -> list[float]:
    return list(array("f", b64decode(column)))


def island(html: str) -> dict:
    return json.loads(next(text for kind, text in Scripts(html).scripts if kind == "application/json"))


def edges_of(data: dict) -> list[tuple[str, str, float]]:
    ids, edges = data["ids"], data["edges"]
    columns = integers(edges["source"]), integers(edges["target"]), floats(edges["weight"])
    return [(ids[source], ids[target], weight) for source, target, weight in zip(*columns, strict=True)]


def test_only_its_own_scripts_run():
    """No hostile text becomes an element, attribute or script; the policy names the two scripts by hash."""
    html = circuit_html(hostile_circuit(), everything(), name="circuits/1")
    page = Scripts(html)
    own = [text for kind, text in page.scripts if kind == ""]
    policy = dict(page.attributes)["content"]
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    assert hashes == [b64encode(sha256(text.encode()).digest()).decode() for text in own]
    assert len(own) == 2
    assert "default-src 'none'" in policy
    assert not re.search(r"unsafe-eval|script-src[^;]*unsafe-inline|https?:", policy)
    assert not {"img", "iframe", "link", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    html.encode("utf-8")


@pytest.mark.parametrize("size", [(60, 300), (3000, 4000)], ids=str)
def test_the_columns_are_the_json(size):
    """Ids, links, cumulative influence, activations and rows are those of the document, to float32."""
    circuit = synthetic_circuit(nodes=size[0], edges=size[1], tokens=11)
    data = island(circuit_html(circuit, whole(circuit), name="circuits/1"))
    document = circuit_json(circuit, whole(circuit), slug="x")
    assert data["ids"] == [node["node_id"] for node in document["nodes"]]
    assert edges_of(data) == [(one["source"], one["target"], one["weight"]) for one in document["links"]]
    expected = [node["influence"] for node in document["nodes"]]
    assert floats(data["nodes"]["cumulative"]) == pytest.approx(expected, rel=1e-6)
    assert floats(data["nodes"]["activation"]) == pytest.approx(
        [n.activation for n in circuit.nodes], rel=1e-6
    )
    assert integers(data["nodes"]["feature"]) == [node.feature for node in circuit.nodes]
    assert [data["texts"][one] for one in integers(data["nodes"]["label"])] == [
        n["clerp"] for n in document["nodes"]
    ]
    starts, items = (integers(data["nodes"]["promotes"][part]) for part in ("start", "item"))
    shown = [[data["texts"][one] for one in items[a:b]] for a, b in pairwise(starts)]
    assert shown == [list(node.promotes) for node in circuit.nodes]


def test_what_enters_a_target_is_in_its_row():
    """Total, bias and remainder stand at the target's node; other nodes have none."""
    nodes = island(circuit_html(hostile_circuit(), everything(), name="circuits/1"))["nodes"]
    assert floats(nodes["total"])[5] == 5.0
    assert floats(nodes["bias"])[5] == pytest.approx(0.3)
    assert floats(nodes["remainder"])[5] == pytest.approx(5.2)
    assert str(floats(nodes["total"])[3]) == "nan"


@pytest.mark.parametrize("node_threshold", [0.5, 0.8, 1.0])
def test_shown_edges_constants_and_the_remainder_are_what_enters(node_threshold):
    """What is pruned for the page is among the sources not in its graph, so that rows sum (law 3)."""
    circuit = layered(3)
    kept = prune(circuit, node_threshold=node_threshold, edge_threshold=0.9)
    data = page_data(circuit, kept, name="circuits/1")
    entering = dict.fromkeys(data["ids"], 0.0)
    for _, target, weight in edges_of(data):
        entering[target] += weight
    total, bias, remainder = (floats(data["nodes"][name]) for name in ("total", "bias", "remainder"))
    checked = 0
    for place, identity in enumerate(data["ids"]):
        if total[place] == total[place]:
            assert entering[identity] + bias[place] + remainder[place] == pytest.approx(
                total[place], abs=1e-5
            )
            checked += 1
    assert 1 < checked < len(circuit.nodes)


def test_pruned_edges_point_at_the_nodes_that_are_left():
    """An edge of a pruned circuit joins the same two ids as in the whole one."""
    kept = replace(everything(), nodes=(1, 4, 5), edges=(1, 3))
    data = island(circuit_html(hostile_circuit(), kept, name="circuits/1"))
    whole_page = island(circuit_html(hostile_circuit(), everything(), name="circuits/1"))
    assert edges_of(data) == [edges_of(whole_page)[1], edges_of(whole_page)[3]]
    assert [source for source, _, _ in edges_of(data)] == ["E_2_1", "2_9_1"]


def test_features_with_pages_beside_are_linked():
    """Nodes of a feature that has a page carry its file's name; the others carry none."""
    beside = {FeatureRef(layer=2, index=9)}
    html = circuit_html(hostile_circuit(), everything(), name="circuits/1", pages=beside)
    assert island(html)["pages"] == {"1": "neurons-2-9.html"}


@pytest.mark.parametrize("clerps", [[["0_7_0", "x"]], {"0_7_0": "x"}, '[["0_7_0", "x"]]'])
def test_pins_supernodes_and_labels_are_read_from_the_view(clerps):
    """Labels come as pairs, as a mapping, or as JSON in a text, as viewers write them."""
    view = {"pinnedIds": ["2_9_1"], "supernodes": [["both", "0_7_0", "2_9_1"]], "clerps": clerps}
    data = page_data(hostile_circuit(), everything(), name="circuits/1", view=view)
    assert data["view"] == {
        "pinned": ["2_9_1"],
        "groups": [{"label": "both", "members": ["0_7_0", "2_9_1"]}],
        "labels": {"0_7_0": "x"},
    }


def test_what_is_known_of_a_feature_is_in_the_page():
    """The panel's card has figures, tokens and contexts around the peak; without an index the label alone."""
    circuit = hostile_circuit()
    data = page_data(circuit, everything(), name="circuits/1", features=[described(circuit.nodes[1])])
    assert data["card"] == {"1": 0}
    card = data["cards"][0]
    context = card["contexts"][0]
    assert context["shares"] == [-0.25, 1.0, 0.0]
    assert context["tokens"][context["at"]] == " store"
    assert card["density"] == pytest.approx(0.00125)
    bare = described(circuit.nodes[1], statistics=None, index=None)
    cards = page_data(circuit, everything(), name="circuits/1", features=[bare])["cards"]
    assert [list(card) for card in cards] == [["label"]]


def test_the_vendored_library_is_the_pinned_one():
    """The file that is shipped has the recorded checksum, and the licence of every part beside it."""
    listed = (files("trephine.pages") / "vendor.txt").read_text().splitlines()
    pinned = [line.split() for line in listed if line and not line.startswith("#")]
    library = (ASSETS / "vendor" / "d3.js").read_bytes()
    assert f"# d3.js {sha256(library).hexdigest()}" in listed
    licences = (ASSETS / "vendor" / "LICENSES.txt").read_text()
    for name, version, _ in pinned:
        assert f"== {name} {version}\n" in licences
    assert b"eval(" not in library
    assert b"new Function" not in library


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read(theme):
    """Every colour that texts have stands out from every ground by the 4.5 : 1 of WCAG AA."""
    rules = dict(
        re.findall(r"(:root|:root\[data-theme=dark\])\{([^}]*)\}", (ASSETS / "look.css").read_text())
    )
    colours = dict(
        re.findall(r"--(\w+):(#\w+)", rules[":root" if theme == "light" else ":root[data-theme=dark]"])
    )
    for ink in ("ink", "faint", "plus", "minus", "accent"):
        for ground in ("ground", "panel"):
            low, high = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.1."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_value_that_is_no_logit_has_neither_unit_nor_probability():
    """A direction's graph shows plain numbers; in the JSON its target has no `token_prob`."""
    circuit = synthetic_circuit(nodes=30, edges=60, tokens=5)
    other = replace(circuit, targets=tuple(replace(t, kind=TargetKind.DIRECTION) for t in circuit.targets))
    kept = whole(circuit)
    for each, units in ((circuit, "logits"), (other, "")):
        assert page_data(each, kept, name="circuits/1")["units"] == units
        document = circuit_json(each, kept, slug="x")
        targets = [node for node in document["nodes"] if node["feature_type"] == "logit"]
        assert targets
        assert all((node["token_prob"] != 0) == bool(units) for node in targets)


def test_a_circuit_over_texts_holds_what_was_measured_on_others():
    """Its page says how many texts; a circuit of a prompt has nothing of the kind."""
    circuit = global_circuit()
    html = circuit_html(circuit, whole(circuit), name="circuits/1")
    across = island(html)["across"]
    assert "<title>Circuit: over 30 texts</title>" in html
    assert (across["training"], across["held_out"], across["overlap"]) == (30, 10, 0.7)
    assert [one["measured"] for one in across["transfer"]] == [way.value for way in Measured]
    assert [each[2] for each in across["transfer"][0]["comparisons"]] == [each.value for each in Standing]
    plain = circuit_html(hostile_circuit(), everything(), name="circuits/1")
    assert island(plain)["across"] is None
