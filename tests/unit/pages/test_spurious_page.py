"""The decision list as a page: a row per feature, nothing of the data runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.spurious_report import judged, report
from trephine.client.spurious_requests import read_overrides
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import (
    ClassifierHead,
    LabelToken,
    Pooling,
    ProbeHead,
    RewardHead,
    TokenHead,
)
from trephine.domain.spurious_outcomes import unmeasured
from trephine.domain.spurious_removal import JudgingRules, RemovalBudget, RemovalOptions, Standing
from trephine.pages.spurious_page import spurious_html


def _page(**changes: Any):
    return spurious_html(
        replace(report(), **changes), name="spuriousRemovals/r", edit="clean@1", create_time="now"
    )


def test_every_feature_is_a_row_with_its_decision():
    """Decision, score, effect, evidence, places; what is removed is marked."""
    page = _page()
    assert page.count('class="removed"') == 1
    assert '<code class="address">3:17</code>' in page
    assert "undecided (kept)" in page
    assert "attribute examples: attribute 0.5, label -0.25, p = 0.001" in page
    assert page.count("by a person") == 1
    assert "but for 1 overridden" in page


def test_what_is_copied_from_the_page_works_in_an_override_file(tmp_path: Path):
    """A feature has one spelling: on the page, in the terminal, in the file."""
    refs = [FeatureRef(layer=3, index=17), FeatureRef(replacement="small.tc", layer=0, index=5)]
    page = _page(features=tuple(replace(judged(Standing.TASK, 1), feature=ref) for ref in refs))
    copied = re.findall(r'<code class="address">(.*?)</code>', page)
    assert copied == ["3:17", "small.tc:0:5"] == [str(ref) for ref in refs]
    file = tmp_path / "words.json"
    file.write_text(json.dumps({name: {"remove": True, "reason": "seen on the page"} for name in copied}))
    named = [one.feature for one in read_overrides(file)]
    assert [(one.replacement or "neurons", one.layer, one.index) for one in named] == [
        (ref.replacement, ref.layer, ref.index) for ref in refs
    ]
    assert [str(one) for one in named] == copied


def test_whether_it_held_stands_first():
    """By how much, and on what; a doubt says what would settle it, and that no edit was made."""
    page = _page()
    assert '<span class="verdict pass">it held</span>' in page
    assert (
        "On the test split, with 200 texts or more per group, the worst group goes from 12.5% to 90.0%"
        in page
    )
    assert page.index("it held") < page.index("What came of it")
    assert "removed, head trained again (ships)" in page
    assert page.count('class="taken"') == 1
    doubt = spurious_html(
        replace(report(), outcome=unmeasured("nothing crossed")), name="r", edit="", create_time="now"
    )
    assert '<span class="verdict inconclusive">it cannot be told whether it held</span>' in doubt
    assert "What would settle it:</b> a test or validation split" in doubt
    assert "none is made of what was not shown to hold" in doubt


def test_before_and_after_stand_side_by_side():
    """With intervals, in percent, and SAEBench's score."""
    page = _page()
    assert "12.5 %" in page
    assert "90.0 %" in page
    assert "85.0 % to 95.0 %" in page
    assert "SCR 0.625" in page
    assert "TPP" not in page


def test_what_is_done_without_features_has_a_table_of_its_own():
    """Behind the other arms; none without such an arm."""
    found = report()
    page = _page(arms=(*found.arms, replace(found.arms[0], arm=Arm.LEACE)))
    first, second = page.index("What came of it"), page.index("Without any feature removed")
    assert first < second < page.index("one by one")
    assert page.count('<th class="number">attribute erased at the head by LEACE</th>') == 1
    assert "Without any feature removed" not in _page()


def test_texts_of_the_data_stay_texts():
    """Tokens and reasons are escaped, scripts are not allowed at all."""
    page = _page()
    assert "<b>she" not in page
    assert "&lt;b&gt;she" in page
    assert "script-src &#39;none&#39;" in page


def test_a_long_list_is_cut_and_says_so():
    """The report has the rest."""
    many = tuple(judged(Standing.TASK, index) for index in range(450))
    assert "50 more are in the report" in _page(features=many)


def test_whatever_goes_is_listed():
    """However many: who writes an override has to see it, and of the others the report has the rest."""
    gone = tuple(judged(Standing.SPURIOUS, index, removed=True) for index in range(420))
    others = tuple(judged(Standing.TASK, index) for index in range(1000, 1030))
    page = _page(features=gone + others)
    assert page.count('class="removed"') == 420
    assert "30 more are in the report" in page


def test_texts_that_run_from_right_to_left_stay_apart():
    """A place, a label and an attribute are each shown by themselves, so that none changes sides."""
    found = report()
    nurse, female = "\u05d0\u05d7\u05d5\u05ea", "\u05e0\u05e7\u05d1\u05d4"
    group = replace(found.arms[0].figures[0], name=f"group {nurse}/{female}")
    (one, *others) = found.features
    firing = replace(one.firings[0], text=f"{female} {nurse}", token=nurse, label=nurse, attribute=female)
    page = _page(
        labels=(nurse, "physician"),
        attributes=(female, "male"),
        arms=(replace(found.arms[0], figures=(group,)),),
        features=(replace(one, firings=(firing,)), *others),
    )
    assert f"<td>group <bdi>{nurse}</bdi>/<bdi>{female}</bdi></td>" in page
    assert f"<li><bdi>{female} <mark>{nurse}</mark></bdi> <small>2.5, <bdi>{nurse}</bdi>" in page
    assert f"<bdi>{nurse}</bdi> or <bdi>physician</bdi>" in page


def test_heads_that_were_tried_are_named_though_none_was_taken():
    """Where nothing went, the head that decides is the original one; the others were trained all the same."""
    point = report().choices[0]
    tried = (replace(point, trained=False, taken=True), replace(point, count=1, trained=True))
    page = _page(choices=tried, chosen=0)
    assert page.count("<td>free</td>") == page.count("<td>as it was</td>") == 1


def test_what_was_asked_for_is_on_the_page():
    """The decision, every option that a run takes, and the digest of its texts; an older report has none."""
    options = RemovalOptions(
        layers=(0, 1),
        steps=3,
        judging=JudgingRules(),
        budget=RemovalBudget(counts=(1, 20), effect_texts=64),
        refit=True,
        erase=False,
        neutral_examples=False,
        attribute_name="gender",
        swaps=(),
        resamples=1000,
        texts_sha256="cd" * 32,
    )
    tokens = (LabelToken(label="<b>good", token=" great"), LabelToken(label="bad", token=" awful"))
    page = _page(options=options, decision=TokenHead(tokens=tokens, template="{text} It was"))
    assert "features of layers 0, 1, 3 steps; 2048 judged on 64 texts of a kind" in page
    assert "1, 20 to go, heads compared on 1024 texts, the head trained again as it is" in page
    assert "the lexicon of gender" in page
    assert "cd" * 32 in page
    assert "&lt;b&gt;good=" in page
    assert "asked for" not in _page()
    assert "a probe of the final norm&#39;s output at the last token" in _page()
    assert "over tokens, mean" in _page(decision=ProbeHead(layer=3, pooling=Pooling.MEAN))
    reward = RewardHead(folder="/models/judge", positive_label="good", threshold=0.5)
    assert "the reward judge, good above its threshold (0.5)" in _page(decision=reward)
    assert "the classifier sorter" in _page(decision=ClassifierHead(folder="/models/sorter"))
