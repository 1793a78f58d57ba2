"""Tables of text: delimiters, quotes and encodings, and that what writers write comes back equal."""

from __future__ import annotations

import csv
import io

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.data.files import tables
from cook.data.files.delimited import parse
from cook.data.files.encodings import Unreadable, read_text

CELLS = st.text(st.sampled_from("ab \"\t\n,;|'é") | st.characters(codec="utf-8", exclude_characters="\r\0"))
TABLES = st.lists(st.tuples(CELLS, CELLS, st.integers(0, 3).map(str)), min_size=1, max_size=6)
NAMES = ["text", "other", "label"]


@settings(max_examples=150, deadline=None)
@given(TABLES, st.sampled_from([",", "\t"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_the_csv_module_writes_comes_back_equal(rows, delimiter, quoting):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows([NAMES, *rows])
    found = parse(file.getvalue(), delimiter)
    assert (found.names, found.rows) == (NAMES, [list(row) for row in rows])


@settings(max_examples=150, deadline=None)
@given(TABLES, st.sampled_from([",", "\t"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]))
def test_what_pandas_writes_comes_back_equal(rows, delimiter, quoting):
    frame = pandas.DataFrame([(*row[:2], int(row[2])) for row in rows], columns=NAMES)
    text = frame.to_csv(sep=delimiter, index=False, quoting=quoting)
    assert parse(text, delimiter).rows == [list(row) for row in rows]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("ab \"',")).filter(lambda text: not text.startswith('"') or text[-1] != '"'),
        min_size=1,
    )
)
def test_quotes_of_an_unquoted_tsv_are_characters(texts):
    text = "text\tlabel\n" + "".join(f"{each}\t{row % 2}\n" for row, each in enumerate(texts))
    assert [row[0] for row in parse(text, "\t").rows] == texts


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_words_in_quotes_at_the_start_of_a_text_stay(delimiter):
    texts = ['"Great" movie', '"Alien" and "Aliens" are both good', 'He said "no"', "plain", '"open']
    text = f"text{delimiter}label\n" + "".join(f"{each}{delimiter}1\n" for each in texts)
    assert [row[0] for row in parse(text, delimiter).rows] == texts


def test_quotes_that_would_merge_rows_are_characters():
    text = 'text\tlabel\nfine\t1\n"lovely cast\t1\nbad plot\t0\nawful"\t0\ndull\t0\n'
    assert len(parse(text, "\t").rows) == 5
    assert parse('text\tlabel\n"a\t0\na"\t1\n', "\t").rows == [['"a', "0"], ['a"', "1"]]
    named = 'text\tlabel\nfine\tyes\nbad\tno\n"so\tno\nso"\tyes\n'
    assert len(parse(named, "\t").rows) == 4
    assert parse('text\tlabel\n"a\tb\nc"\t1\n', "\t").rows == [["a\tb\nc", "1"]]


def test_a_title_in_quotes_among_bare_ones_keeps_them():
    assert parse('text\tlabel\n"Alien"\t1\nAliens\t0\n', "\t").rows == [['"Alien"', "1"], ["Aliens", "0"]]
    assert parse('text\tlabel\n"Alien"\t1\n"Aliens"\t0\n', "\t").rows == [["Alien", "1"], ["Aliens", "0"]]


def test_quotes_that_fit_no_reading_are_refused_with_their_line():
    with pytest.raises(Unreadable, match="line 3: the quotes cannot be read"):
        parse('text,label\n"a ""b"", c",1\n"Great" movie,0\n', ",")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("usual", [",", "\t"])
def test_the_delimiter_is_found(delimiter, usual):
    text = f"text{delimiter}label\ngood, very good{delimiter}1\nbad{delimiter}0\n"
    if delimiter == ",":
        text = text.replace("good, very good", "good; very good")
    assert parse(text, usual).names == ["text", "label"]
    assert len(parse(text, usual).rows) == 2


def test_a_delimiter_that_is_not_clear_is_asked_for():
    for text in ("a;b|c\n1;2|3\n", "a;b\n1;2;3\n"):
        with pytest.raises(Unreadable) as caught:
            parse(text, ",")
        assert "data.delimiter: ';'" in caught.value.hint
    assert parse("a;b|c\n1;2|3\n", ",", "|").rows == [["1;2", "3"]]
    assert parse("text\ngood; bad\n", ",").rows == [["good; bad"]]


def test_rows_know_their_lines():
    assert parse('text,label\n\n"two\nlines",1\nb,0\n', ",").lines == [3, 5]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_marked_encodings_are_found(tmp_path, encoding, name):
    text = {"a.csv": "text\né\n", "a.txt": "é\n", "a.jsonl": '{"text": "é"}\n'}[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert tables.read([tmp_path / name])["text"][:] == ["é"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "text\ncaf\u00e9 \u2013 \u201cgood\u201d\n"),
        ("gb18030", "text\n很好的电影,我喜欢\n"),
        ("utf-16-le", "text\ngood\n"),
    ],
)
def test_other_encodings_are_refused_with_a_likely_one(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(Unreadable) as caught:
        tables.read([tmp_path / "a.txt"])
    assert "not UTF-8" in str(caught.value)
    assert f"data.encoding: {encoding}" in caught.value.hint
    assert read_text(tmp_path / "a.txt", encoding) == text


def test_an_unknown_encoding_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(Unreadable, match="no encoding 'utf-9'"):
        tables.read([tmp_path / "a.txt"], encoding="utf-9")
