"""A lexicon in any script: whole words are exchanged, or it is said that they cannot be told."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from trephine.domain.errors import InvalidRequestError
from trephine.domain.spurious_texts import Swap
from trephine.engine.spurious.swaps import Swapper


def _swapper(first: str, second: str) -> Swapper:
    return Swapper((Swap(first=first, second=second),))


@pytest.mark.parametrize(
    ("words", "text", "edited"),
    [
        (("नर", "मादा"), "नरेंद्र एक नर है।", "नरेंद्र एक मादा है।"),
        (("पिता", "माता"), "पितामह और पिता", "पितामह और माता"),
        (("لعب", "لعبت"), "لَعِبَ ثم لعب", "لَعِبَ ثم لعبت"),
        (("رو", "او"), "می‌رود و می‌رو رو", "می‌رود و می‌رو او"),
    ],
)
def test_marks_and_joiners_are_parts_of_words(words, text, edited):
    """They are no letters, and parted names: a man's name began with *male*."""
    assert _swapper(*words)(text) == edited


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_letters_are_found_however_they_are_composed(form, written):
    """In the lexicon and in the text, in a word and among several."""
    swap = Swapper(
        (
            Swap(first=normalize(form, "époux"), second=normalize(form, "épouse")),
            Swap(first=normalize(form, "petit bébé"), second=normalize(form, "aîné")),
        )
    )
    text = normalize(written, "L'époux, mariée, un petit bébé")
    assert normalize("NFC", swap(text) or "") == "L'épouse, mariée, un aîné"
    assert _swapper("marie", "jean")(normalize(written, "une mariée")) is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("他", "她"), "他是医生。"),
        (("他", "她"), "其他人来了"),
        (("他", "她"), "他，其他"),
        (("彼", "彼女"), "彼は医者です"),
        (("ผู้ชาย", "ผู้หญิง"), "เขาเป็นผู้ชายที่ดี"),
        (("ທ້າວ", "ນາງ"), "ທ້າວຄໍາ"),
    ],
)
def test_a_word_that_cannot_be_told_from_its_surroundings_is_refused(words, text):
    """It may be a part of another word; nothing was edited, or some of them, without a word on it."""
    with pytest.raises(InvalidRequestError, match=r"stands among other characters in .* as twins") as refused:
        _swapper(*words)(text)
    assert refused.value.context["field"] == "swaps"


@pytest.mark.parametrize(
    ("words", "text", "edited"),
    [
        (("他", "她"), "他 是 医生。“他”", "她 是 医生。“她”"),
        (("他们", "她们"), "他们 是 医生", "她们 是 医生"),
        (("iPhone", "Android"), "新iPhone手机", "新Android手机"),
        (("co-pilot", "steward"), "他是co-pilot。", "他是steward。"),
        (("he", "she"), "他说he是the医生", "他说she是the医生"),
        (("he", "she"), "他是医生", None),
    ],
)
def test_words_that_stand_by_themselves_are_exchanged(words, text, edited):
    """Between spaces or marks; and where another script ends."""
    assert _swapper(*words)(text) == edited
