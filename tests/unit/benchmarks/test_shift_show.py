"""The show of an override: what it hands over, what a reader is made to say, what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.shift_show import KEPT, SIZES, address, compare, write_overrides, write_texts


def _feature(index: int, standing: str, **more: object) -> dict[str, object]:
    return {"feature": {"layer": 2, "index": index}, "standing": f"FEATURE_STANDING_{standing}", **more}


REPORT = {
    "features": [
        *(_feature(index, "SPURIOUS", removed=True, effect=1.0) for index in range(5)),
        _feature(7, "UNDECIDED", effect=0.1),
        _feature(8, "UNDECIDED", effect=-0.6),
        _feature(9, "TASK", effect=2.0),
    ],
    "chosen": 5,
    "arms": [{"arm": "REMOVAL_ARM_REMOVED", "figures": [{"name": "worst_group", "value": 0.25}]}],
}


def test_the_ambiguous_texts_do_not_tell_the_attribute(tmp_path: Path):
    """The other two files do; only texts of the task have its label."""
    data = tmp_path / "data"
    (data / "agreement").mkdir(parents=True)
    for name in ("simple", "within_rc"):
        (data / "agreement" / f"{name}.jsonl").write_text("")
    write_texts(data, tmp_path)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("ambiguous", "others", "balanced")
    }
    assert {frozenset(row) for row in rows["ambiguous"]} == {frozenset({"text", "profession"})}
    assert {frozenset(row) for row in rows["others"]} == {frozenset({"text", "gender"})}
    assert {frozenset(row) for row in rows["balanced"]} == {frozenset({"text", "gender", "profession"})}
    assert len(rows["ambiguous"]) == 2 * SIZES.training


def test_a_reader_keeps_what_went_and_removes_what_stayed(tmp_path: Path):
    """The strongest removed ones come back, the strongest undecided one goes, in the format of overrides."""
    write_overrides(REPORT, tmp_path / "overrides.json")
    words = json.loads((tmp_path / "overrides.json").read_text())
    assert [key for key, word in words.items() if not word["remove"]] == [f"2:{n}" for n in range(KEPT)]
    assert [key for key, word in words.items() if word["remove"]] == ["2:8"]


def test_features_of_a_set_are_written_with_it():
    """As the page and an override file write them; a neuron's set goes without saying."""
    assert address({"feature": {"replacement": "small", "layer": 1, "index": 4}}) == "small:1:4"
    assert address({"feature": {"replacement": "neurons", "index": 4}}) == "0:4"


def test_what_changed_is_told_by_feature_number_and_figure(capsys):
    """Both runs stand beside each other."""
    after = {
        "features": [_feature(0, "TASK", override="this is about the work")],
        "chosen": 4,
        "arms": [{"arm": "REMOVAL_ARM_REMOVED", "figures": [{"name": "worst_group", "value": 0.125}]}],
    }
    compare(REPORT, after)
    assert capsys.readouterr().out.splitlines() == [
        "2:0: spurious, removed -> task (this is about the work)",
        "features removed: 5 -> 4",
        "worst_group: 0.250 -> 0.125",
    ]
