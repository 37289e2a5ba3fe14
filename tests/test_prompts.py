"""Prompts: cleaning, refusals, lists of them from files, and names of files."""

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcli.errors import CheckpointError, UsageError
from narcli.prompts import MAX_PROMPT, clean, collect, parse_prompt, slug

PAIRS = json.loads((Path(__file__).with_name("data") / "prompt_cleaning.json").read_text("utf-8"))


@pytest.mark.parametrize(("prompt", "cleaned"), PAIRS)
def test_prompts_are_cleaned_as_by_the_released_code(prompt, cleaned):
    assert clean(prompt) == cleaned
    assert parse_prompt(f"  {prompt}\n").text == prompt


@given(st.text(max_size=300))
def test_what_is_cleaned_is_one_line_of_lower_case(text):
    cleaned = clean(text)
    assert cleaned == cleaned.strip() and "  " not in cleaned and "\n" not in cleaned
    assert cleaned.lower() == cleaned or text.lower() != text.lower().lower()


@pytest.mark.parametrize(
    ("prompt", "message", "hint"),
    [
        ("", "empty", "--prompt"),
        (" \n\t", "empty", "--prompt"),
        ("a\x00b", "U+0000", "Leave"),
        ("red \x1b[31mapple", "U+001B", "Leave"),
        ("猫", "Nothing is left of the prompt '猫'", "English"),
        ("https://example.com/a 3x4 @me!", "Nothing is left", "English"),
        ("...", "Nothing is left", "English"),
        ("\udcff", "UTF-8", "encoding"),
        ("x" * (MAX_PROMPT + 1), "10,001 characters", "--prompt-file"),
    ],
)
def test_unusable_prompts_are_refused_with_a_reason(prompt, message, hint):
    with pytest.raises(UsageError) as caught:
        parse_prompt(prompt)
    assert message in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize("prompt", ["🍎", "猫 cat", "ご飯", "a\tb\nc", "4k"])
def test_unusual_prompts_are_taken(prompt):
    assert parse_prompt(prompt).cleaned


def test_long_prompts_are_cleaned_quickly():
    import time

    for text in ("a-" * 5000, "a." * 5000, "http://" * 1400, "<a" * 5000, "1.1" * 3000, "&amp;" * 2000):
        began = time.process_time()
        clean(text)
        assert time.process_time() - began < 1, text[:20]


def test_prompts_come_from_several_places_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from stdin\n\nagain\n"))
    file = tmp_path / "list.txt"
    file.write_bytes("\ufefffirst line\r\n\r\nsecond, with a comma\n".encode())
    texts = [prompt.text for prompt in collect(["one", "-", "two"], file)]
    assert texts == ["one", "from stdin", "again", "two", "first line", "second, with a comma"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parti.tsv", 'Prompt\tCategory\nbond\tAbstract\n"a ""red"" apple"\tFood\n\tEmpty\n'),
        ("mine.CSV", 'id,prompt\n1,bond\n2,"a ""red"" apple"\n3\n'),
    ],
)
def test_tables_have_a_column_of_prompts(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert [prompt.text for prompt in collect([], tmp_path / name)] == ["bond", 'a "red" apple']


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", b"text,other\na,b\n", UsageError, "no column 'prompt'. It has text, other."),
        ("a.tsv", b"", UsageError, "It is empty"),
        ("a.txt", b"\n\n", UsageError, "no prompts in"),
        ("a.txt", b"good\n\xe7\x8c\xab\n", UsageError, "Line 2 of"),
        ("a.txt", b"\xff\xfe", CheckpointError, "UTF-16"),
        ("a.txt", b"good\n\xff", CheckpointError, "not UTF-8 text (line 2)"),
        ("a.csv", b'prompt\n"open\n', CheckpointError, "(line 2)"),
    ],
)
def test_unusable_files_are_refused_with_a_reason(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        collect([], tmp_path / name)
    assert message in caught.value.message
    with pytest.raises(UsageError, match="no file"):
        collect([], tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple!", "a-red-apple"),
        ("woman's hat, 4k", "womans-hat-4k"),
        ("café ご飯", "café-ご飯"),
        ("🍎", ""),
        ("../../etc/passwd", "etc-passwd"),
        ("word " * 30, "-".join(["word"] * 12)),
        ("x" * 100, "x" * 60),
    ],
)
def test_names_of_files_are_made_of_words(prompt, name):
    assert slug(prompt) == name


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", "one\x0cstill one\u2028and so\n\n\r\r\n", 5),  # form feeds and separators end no line
        ("a.csv", 'prompt,id\n"two\nlines",1\r\n\nlast,2\n', 6),
        ("a.tsv", 'id\tprompt\n1\t"one\r\ntwo"\n2\tthree\n', 5),
    ],
)
def test_an_unusable_prompt_of_a_file_is_told_with_its_line(tmp_path, name, content, line):
    bad = {".txt": "\x01", ".csv": "\x01,3", ".tsv": "3\t\x01"}[name[1:]]
    # An unusable prompt on a last line, in a file with a byte order mark.
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.replace("\x0c", " ").encode() + bad.encode())
    with pytest.raises(UsageError, match=f"Line {line} of "):
        collect([], tmp_path / name)


def test_only_ends_of_lines_end_prompts(tmp_path):
    text = "one\u2028still one\x85and so\rtwo\r\nthree\u2029\n"
    (tmp_path / "a.txt").write_bytes(text.encode("utf-8-sig"))
    assert [len(p.text.split()) for p in collect([], tmp_path / "a.txt")] == [5, 1, 1]


def test_the_standard_input_is_utf_8_with_or_without_a_mark(monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfcaf\xc3\xa9\r\ntwo"), "latin-1")
    )
    assert [prompt.text for prompt in collect(["-"])] == ["café", "two"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntw\xff"), "latin-1"))
    with pytest.raises(CheckpointError, match=r"standard input is not UTF-8 text \(line 2\)"):
        collect(["-"])
