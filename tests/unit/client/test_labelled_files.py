"""Cells and lines of labelled texts: what is empty, what is a number, where a line ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trephine.client import datasets, labelled_files
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.labelled_files import TextColumns, read_attribute_texts, read_texts


def test_lines_end_where_the_format_says(tmp_path: Path):
    """A JSON string may hold U+2028 as it is, and a quoted cell a newline."""
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "a\u2028b\x85c", "label": "x"}\r\n\r\n{"text": "d", "label": "y"}', "utf-8")
    assert [one.text for one in read_texts(lines)] == ["a\u2028b\x85c", "d"]
    table = tmp_path / "rows.csv"
    table.write_bytes(b'text,label\r\n"two\nlines",x\r\n"d\r\ne",y\r\n')
    assert [(one.text, one.label) for one in read_texts(table)] == [("two\nlines", "x"), ("d\r\ne", "y")]
    table.write_text("text,label\n" + "a" * 140_000 + ",x\n")
    with pytest.raises(LocalFileError, match="is no CSV: field larger"):
        read_texts(table)


def test_a_table_may_begin_with_row_numbers(tmp_path: Path):
    """As tables are saved that count their rows: no text is lost by it."""
    file = tmp_path / "rows.csv"
    file.write_text(",text,label\n0,a b,x\n1,a c,y\n")
    assert [(one.text, one.label) for one in read_texts(file)] == [("a b", "x"), ("a c", "y")]


def test_a_line_that_names_a_column_twice_is_refused(tmp_path: Path):
    """The first value would be lost."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "x"}\n{"text": "a", "label": "x", "label": "y"}\n')
    with pytest.raises(LocalFileError, match="line 2 is no JSON: it names 'label' twice"):
        read_texts(file)


def test_an_empty_cell_of_a_csv_is_none(tmp_path: Path):
    """Or of blanks; blank lines are no rows."""
    file = tmp_path / "rows.csv"
    file.write_text("text,label,gender,twin\na b,x,f,c d\na c,y, ,\n\na d,y,,\n")
    found = read_texts(file, TextColumns(attribute="gender", twin="twin"))
    assert [(one.attribute, one.twin) for one in found] == [("f", "c d"), (None, None), (None, None)]
    assert read_attribute_texts(file, text="text", attribute="label")[2].attribute == "y"


UNSAFE = {
    "a comma that is not quoted": (
        "label,text\nneg,Dull\npos,Great, not a bad word in it\n",
        r"row 2 \(line 3\) has 3 cells, the first line names 2 \(label, text\): write a cell that holds",
    ),
    "a row that ends early": ("text,label\nabc\n", r"row 1 \(line 2\) has 1 cells, .*write an empty cell"),
    "a quote that is not closed": (
        'label,text\nneg,"two\nlines"\npos,"Hello\nneg,fine\npos,good\n',
        r"row 2 \(line 4\) is no CSV: unexpected end of data; write a cell .* in quotes",
    ),
    "words behind a quoted cell": ('text,label\n"a" b,x\n', r"row 1 \(line 2\) is no CSV: .* expected after"),
    "a quote in the first line": ('text,"label\nabc,x\n', "the first line is no CSV"),
    "a column named twice": ("text,label,label\na,x,y\n", "names 'label' twice, columns 2 and 3"),
    "a column without a name": ("text,label,\na,x,\n", "column 3 has no name in the first line"),
    "a column without a name that counts nothing": (
        ",text,label\n0,a,x\nHello, world,y\n",
        r"row 2 \(line 3\) begins with 'Hello' in a column without a name",
    ),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_table_that_would_lose_text_is_refused(tmp_path: Path, name: str):
    """By its row and line, and with what to do; nothing is cut, swallowed or hidden by another column."""
    written, said = UNSAFE[name]
    file = tmp_path / "rows.csv"
    file.write_text(written)
    with pytest.raises(LocalFileError, match=said):
        read_texts(file)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "row 1: column 'label' is empty"),
        ("", "row 1: column 'label' is empty"),
        (0.5, "holds 0.5, which is neither a text nor a whole number"),
        (["x"], r"holds \['x'\], which is neither"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path: Path, cell: Any, said: str):
    """With its place and what stands there."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a", "label": cell}))
    with pytest.raises(InvalidRequestError, match=said):
        read_texts(file)


PAIRS: list[dict[str, Any]] = [
    {"prompt": "Why?", "chosen": "So.", "rejected": " Hm.", "chosen_tone": "warm", "rejected_tone": "cold"},
    {"prompt": "", "chosen": "Yes.", "rejected": "No.", "chosen_tone": "warm", "room": 4},
]


def _written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_row_with_chosen_and_rejected_is_two_texts_in_a_pair(tmp_path: Path):
    """Each behind the prompt, with what is told of it alone or of both."""
    file = _written(tmp_path / "pairs.jsonl", PAIRS)
    found = read_texts(file, TextColumns(attribute="tone", environment="room"))
    assert [(one.text, one.label) for one in found] == [
        ("Why? So.", "chosen"), ("Why? Hm.", "rejected"), ("Yes.", "chosen"), ("No.", "rejected"),
    ]  # fmt: skip
    assert [one.attribute for one in found] == ["warm", "cold", "warm", None]
    assert [one.environment for one in found] == [None, None, "4", "4"]
    pairs = [one.pair for one in found]
    assert pairs[0] == pairs[1] != pairs[2] == pairs[3]
    assert str(pairs[0]).startswith("pairs.jsonl, row 1 (")


def test_a_twin_of_a_reply_stands_behind_the_prompt_too(tmp_path: Path):
    """It is the reply that is edited."""
    file = _written(tmp_path / "pairs.jsonl", [PAIRS[0] | {"chosen_plain": "Well."}])
    found = read_texts(file, TextColumns(twin="plain"))
    assert [one.twin for one in found] == ["Why? Well.", None]


def test_rows_of_files_with_one_name_are_different_pairs(tmp_path: Path):
    """As `train/pairs.jsonl` and `test/pairs.jsonl` are."""
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    one = read_texts(_written(tmp_path / "train" / "pairs.jsonl", PAIRS[:1]))
    other = read_texts(_written(tmp_path / "test" / "pairs.jsonl", PAIRS[1:]))
    assert one[0].pair != other[0].pair


def test_a_table_with_the_columns_text_and_pair_is_read_row_by_row(tmp_path: Path):
    """Chosen and rejected mean nothing where there is a text; an empty cell is no pair."""
    rows = [
        {"text": "a b", "label": "x", "chosen": "c", "rejected": "d", "met": 1},
        {"text": "e", "label": "y"},
    ]
    found = read_texts(_written(tmp_path / "rows.jsonl", rows), TextColumns(pair="met"))
    assert [(one.text, one.pair) for one in found] == [("a b", "1"), ("e", None)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": None}, "column 'rejected' is empty"),
        ({"chosen": [{"role": "user"}], "rejected": "b"}, "column 'chosen' holds .*write it as text"),
        ({"chosen": "a"}, "has no column 'text'"),
    ],
)
def test_half_a_comparison_is_refused(tmp_path: Path, row: dict[str, Any], said: str):
    """With its place and column."""
    with pytest.raises(InvalidRequestError, match=said):
        read_texts(_written(tmp_path / "pairs.jsonl", [row]))


def test_a_misspelt_column_of_comparisons_is_refused(tmp_path: Path):
    """Neither side has it."""
    file = _written(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(InvalidRequestError, match="has no column 'tune'"):
        read_texts(file, TextColumns(attribute="tune"))


@pytest.mark.parametrize("names", [("train.jsonl", "test.jsonl"), ("train-00000-of-1.csv", "Validation.csv")])
def test_a_folder_of_several_splits_is_not_read_as_one_set(tmp_path: Path, names: tuple[str, str]):
    """Texts to test on would be learnt from, and nobody told."""
    for name in names:
        body = "text,label\na b,x\n" if name.endswith("csv") else '{"text": "a b", "label": "x"}\n'
        (tmp_path / name).write_text(body)
    with pytest.raises(LocalFileError, match=r"holds the splits t.*; give the file of one of them"):
        read_texts(tmp_path)
    (tmp_path / names[1]).rename(tmp_path / f"train-{names[1]}")
    assert len(read_texts(tmp_path)) == 2


BLANKS = ("   ", "\t", "\u00a0 ")


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
@pytest.mark.parametrize("column", ["text", "label"])
def test_a_cell_of_blanks_is_no_text_and_no_label(tmp_path: Path, column: str, blank: str):
    """It would be a third label, or a text that tells nothing."""
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y", column: blank}]
    said = f"row 2: column '{column}' holds blanks alone; write what is meant there, or leave the row out"
    with pytest.raises(InvalidRequestError, match=said) as refused:
        read_texts(_written(tmp_path / "rows.jsonl", rows))
    assert refused.value.field == column


SPELLED = {
    "case": ("Nurse", "case, blanks"),
    "a blank behind it": ("nurse ", "case, blanks"),
    "a space without width": ("nu\u200brse", "case, blanks"),
    "letters of full width": ("\uff4eurse", "case, blanks"),
    "a control character": ("nurse\x01", "case, blanks"),
}


@pytest.mark.parametrize("name", SPELLED)
@pytest.mark.parametrize("role", ["label", "attribute"])
def test_two_spellings_of_one_name_are_refused_with_both_places(tmp_path: Path, name: str, role: str):
    """Two labels that look alike are one, and half of its texts would be of another."""
    other, said = SPELLED[name]
    rows: list[dict[str, Any]] = [{"text": "a", "label": "x", "who": "m"} for _ in range(3)]
    column = {"label": "label", "attribute": "who"}[role]
    rows[0][column], rows[2][column] = "nurse", other
    with pytest.raises(InvalidRequestError) as refused:
        read_texts(_written(tmp_path / "rows.jsonl", rows), TextColumns(attribute="who"))
    assert refused.value.message.startswith(
        f"rows.jsonl, row 3: column {column!r} holds {other!a}, and 'nurse'"
    )
    assert "in rows.jsonl, row 1; these differ in " + said in refused.value.message
    assert refused.value.field == column


def test_spellings_are_compared_over_all_files_of_a_folder_and_among_examples(tmp_path: Path):
    """One file may call a label what another one calls otherwise."""
    (tmp_path / "a.csv").write_text("text,label\na,x\n")
    (tmp_path / "b.jsonl").write_text('{"text": "b", "label": "X"}')
    with pytest.raises(InvalidRequestError, match=r"b\.jsonl, row 1: .* 'X', and 'x' in a\.csv, row 1"):
        read_texts(tmp_path)
    file = _written(tmp_path / "who.jsonl", [{"text": "a", "who": "f"}, {"text": "b", "who": "F"}])
    with pytest.raises(InvalidRequestError, match="row 2: column 'who' holds 'F', and 'f'"):
        read_attribute_texts(file, text="text", attribute="who")


def test_keys_keep_their_case_but_not_their_blanks(tmp_path: Path):
    """An environment or a pair may be named by a key in which case counts, and a number may be one."""
    rows: list[dict[str, Any]] = [{"text": "a", "label": "x", "key": key} for key in ("aB", "ab", 1, "2")]
    file = _written(tmp_path / "rows.jsonl", rows)
    for columns in (TextColumns(environment="key"), TextColumns(pair="key")):
        found = read_texts(file, columns)
        assert [one.environment or one.pair for one in found] == ["aB", "ab", "1", "2"]
    _written(file, [*rows, {"text": "a", "label": "x", "key": "ab "}])
    with pytest.raises(InvalidRequestError, match=r"row 5: .* 'ab ', and 'ab' in rows.jsonl, row 2; .* in b"):
        read_texts(file, TextColumns(environment="key"))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ((1, "one"), "row 2: column 'label' holds the text 'one', and the number 1 in rows.jsonl, row 1"),
        (("1", 1.0), "row 2: column 'label' holds the number 1.0, and the text '1' in rows.jsonl, row 1"),
        ((1, True), "row 2: column 'label' holds the truth value True, and the number 1 in"),
        (("nan", float("nan")), "row 2: column 'label' holds nan, which is neither"),
        ((None, "x"), "row 1: column 'label' is empty"),
    ],
)
def test_labels_are_texts_or_numbers_and_not_some_of_each(tmp_path: Path, cells: tuple[Any, Any], said: str):
    """Whether 1 and "1" are one label nobody can tell but who wrote them."""
    rows = [{"text": "a", "label": cell} for cell in cells]
    with pytest.raises(InvalidRequestError, match=said):
        read_texts(_written(tmp_path / "rows.jsonl", rows))


def test_numbers_with_and_without_a_point_are_one_label(tmp_path: Path):
    """Tables with gaps store 1 as 1.0."""
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 1.0}, {"text": "c", "label": 0}]
    found = read_texts(_written(tmp_path / "rows.jsonl", rows))
    assert [one.label for one in found] == ["1", "1", "0"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": "text"}, "'text' is named as text and as label"),
        ({"attribute": "label"}, "'label' is named as label and as attribute"),
        ({"attribute": "who", "environment": "who"}, "'who' is named as attribute and as environment"),
    ],
)
def test_a_column_has_one_role(columns: dict[str, str], said: str):
    """A label that is the text, or an attribute that is the label, decides nothing."""
    with pytest.raises(InvalidRequestError, match=said):
        TextColumns(**columns)


def test_what_is_repeated_may_be_the_pair(tmp_path: Path):
    """Two replies to a question are a pair, and the question is what they repeat."""
    rows = [{"text": "a", "label": "x", "asked": 1}, {"text": "b", "label": "y", "asked": 1}]
    columns = TextColumns(environment="asked", pair="asked")
    found = read_texts(_written(tmp_path / "rows.jsonl", rows), columns)
    assert [(one.environment, one.pair) for one in found] == [("1", "1")] * 2


NO_TEXT = {
    "UTF-16 with its mark": ("text,label\na,x\n".encode("utf-16"), "line 1 holds the byte 0xff"),
    "UTF-16 without": ("text,label\na,x\n".encode("utf-16-le"), "line 1 holds a NUL byte, .* save it"),
    "Latin-1": ("text,label\na,x\ncaf\xe9,y\n".encode("latin-1"), "line 3 holds the byte 0xe9"),
    "a NUL byte": (b"text,label\na,x\nb\0,y\n", "line 3 holds a NUL byte"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_told_by_its_line(tmp_path: Path, name: str):
    """Read as it is, its columns would be called otherwise than they look."""
    written, said = NO_TEXT[name]
    file = tmp_path / "rows.csv"
    file.write_bytes(written)
    with pytest.raises(LocalFileError, match=said):
        read_texts(file)


def test_a_nul_that_json_writes_in_letters_is_refused(tmp_path: Path):
    """No text holds one; a tokenizer may end there."""
    file = _written(tmp_path / "rows.jsonl", [{"text": "a\0b", "label": "x"}])
    with pytest.raises(InvalidRequestError, match="row 1: column 'text' holds a NUL character in"):
        read_texts(file)


def test_a_mark_of_byte_order_and_carriage_returns_change_nothing(tmp_path: Path):
    """As tables of other systems have them."""
    file = tmp_path / "rows.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\r\na b,x\r\n")
    assert [(one.text, one.label) for one in read_texts(file)] == [("a b", "x")]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a b", "label": "x"}\r\n')
    assert [(one.text, one.label) for one in read_texts(file)] == [("a b", "x")]


def test_a_column_with_blanks_in_its_name_is_seen_in_the_refusal(tmp_path: Path):
    """As a first line with blanks behind its commas has it."""
    file = tmp_path / "rows.csv"
    file.write_text("text, label\na,x\n")
    with pytest.raises(InvalidRequestError, match="has no column 'label'; it has text, ' label'"):
        read_texts(file)


def test_files_that_no_request_could_hold_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither gigabytes nor millions of rows; the refusal says what to do."""
    file = _written(tmp_path / "rows.jsonl", [{"text": "a", "label": "x"}] * 5)
    monkeypatch.setattr(labelled_files, "MOST_ROWS", 4)
    with pytest.raises(LocalFileError, match=r"more than 4 rows, .* keep the rows that are to be used"):
        read_texts(file)
    monkeypatch.setattr(datasets, "LARGEST_BYTES", 10)
    with pytest.raises(LocalFileError, match=r"and at most 0.0 are read; keep the rows and columns"):
        read_texts(file)
