"""Prompts: cleaning, refusals, lists of them from files, and names of files."""

import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcli import prompts
from narcli.classes import load_table
from narcli.errors import CheckpointError, UsageError
from narcli.prompts import MAX_PROMPT, Prompt, clean, collect, parse_prompt, slug

PAIRS = [
    pair
    for name in ("prompt_cleaning", "prompt_cleaning_more")
    for pair in json.loads((Path(__file__).with_name("data") / f"{name}.json").read_text("utf-8"))
]


@pytest.mark.parametrize(("prompt", "cleaned"), PAIRS)
def test_prompts_are_cleaned_as_by_the_released_code(prompt, cleaned):
    assert clean(prompt) == cleaned
    if any(unicodedata.category(c)[0] in "LNS" for c in cleaned):
        assert parse_prompt(f"  {prompt}\n") == Prompt(prompt.strip(), cleaned)
    else:
        with pytest.raises(UsageError, match="Nothing is left"):
            parse_prompt(prompt)


# fmt: off
PIECES = st.sampled_from([
    "a.com", "b.y.com", "a", "1", "3x4", "x", ".", "..", ".png", "@", "/", "-", "_", " ", "\t", "\n", "é",
    "http:/", "www:a", "\u0660", "<a", "</b>", "<![", "<!--", "<?", "&quot", "&am", "%3C", "+", "猫",
    "\\n", '"', "&lt;", "shipping", "free ", "page 3", "1:23 ", "\u2019", "\ufb01",
    "ä½", "\x1b[1m", "\ud800", "%C2%81",
])
# fmt: on


@given(st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join))
def test_cleaning_never_fails_and_gives_one_line_always_the_same(text):
    cleaned = clean(text)
    assert cleaned == clean(text) == cleaned.strip() and "  " not in cleaned
    try:
        prompt = parse_prompt(text)
    except UsageError:
        return
    assert prompt == Prompt(text.strip(), cleaned)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in cleaned)


@given(st.lists(PIECES, max_size=20).map("".join))
def test_quick_patterns_match_as_the_plain_ones_do(text):
    tail = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
    for (quick, replacement), plain in {
        prompts._BEFORE_HTML[1]: rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{tail})",
        prompts._BEFORE_HTML[2]: rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{tail})",
        _rule("jpeg", prompts._BEFORE_REPAIR): r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)",
        _rule(r"\s+\.\s+", prompts._BEFORE_REPAIR): r"\s+\.\s+",
        _rule("u0445", prompts._AFTER_REPAIR): r"\b\d+\.?\d*[xх×]\d+\.?\d*\b",
    }.items():
        assert quick.sub(replacement, text) == re.sub(plain, " " if replacement == " " else "", text)


def _rule(part, rules):
    (found,) = [rule for rule in rules if part in rule[0].pattern and r"\b(?:" not in rule[0].pattern]
    return found


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("<![odd a red apple", "<! odd a red apple"),  # the parser of HTML may refuse it
        ("<b>" * 3000 + "a red apple", "a red apple"),
        ("a%1b[31m red%00 apple", "a 31m red apple"),
        ("&amp;am&amp;quotp a cat", "a cat"),
        ("notes.txt", "notes. txt"),
        ("http://a.com", ""),
        ("<?xml version='1.0'?> a red apple", "a red apple"),
    ],
)
def test_odd_prompts_are_cleaned_without_a_warning(prompt, cleaned, recwarn):
    assert clean(prompt) == cleaned
    assert not recwarn.list


def test_what_the_built_in_model_was_trained_with_is_cleaned_as_it_was():
    names = {name for row in load_table("emoji").rows for name in row.names}
    captions = {*names, *(f"a {name} with a hat" for name in names)}
    assert {caption for caption in captions if clean(caption) != caption.lower()} == set()


def test_a_cleaned_prompt_of_a_file_is_kept():
    assert parse_prompt("RV, R.V.", "rv, r.v.").cleaned == "rv, r.v."
    assert parse_prompt("猫", "cat").cleaned == "cat"
    with pytest.raises(UsageError, match="U\\+001B"):
        parse_prompt("cat", "c\x1bat")
    with pytest.raises(UsageError, match="Nothing is left"):
        parse_prompt("cat", "")


@pytest.mark.parametrize(
    ("prompt", "message", "hint"),
    [
        ("", "empty", "`prompts="),
        (" \n\t", "empty", "`prompts="),
        ("a\x00b", "U+0000", "Leave"),
        ("red \x1b[31mapple", "U+001B", "Leave"),
        ("猫", "Nothing is left of the prompt '猫'", "English"),
        ("https://example.com/a 3x4 @me!", "Nothing is left", "English"),
        ("...", "Nothing is left", "English"),
        ("\udcff", "UTF-8", "encoding"),
        ("x" * (MAX_PROMPT + 1), "10,001 characters", "`prompt_file`"),
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
    told = []
    found = collect([], tmp_path / name, told.append)
    assert [prompt.text for prompt in found] == ["bond", 'a "red" apple']
    other = "category" if "parti" in name else "id"
    assert told == [f"{tmp_path / name}: only the column 'prompt' is used, not {other}."]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", b"text,other\na,b\n", UsageError, "no column 'prompt'. It has text, other."),
        ("a.tsv", b"", UsageError, "It is empty"),
        ("a.csv", b"prompt,seed\ncat,3\n", UsageError, "column 'seed', and a table sets prompts only"),
        ("a.tsv", b"prompt\tCFG-Scale\ncat\t3\n", UsageError, "column 'cfg-scale'"),
        ("a.csv", b"class,prompt\n207,cat\n", UsageError, "column 'class'"),
        ("a.csv", b"prompt,Prompt\ncat,dog\n", UsageError, "several columns 'prompt'"),
        ("a.csv", b"prompt\ndog\ncat, asleep\n", UsageError, "Line 3 of"),
        ("a.jsonl", b'{"prompt": "cat"}\n', UsageError, "not a text file or table"),
        ("a.JSON", b'["cat"]', UsageError, "not a text file or table"),
        ("a.txt", b'cat\n{"prompt": "cat"}\n', UsageError, "Line 2 of"),
        ("a.txt", b"{'prompt': 'cat'}\n", UsageError, "Line 1 of"),  # as Python prints it
        ("a.txt", b"\nprompt,seed\ncat,3\n", UsageError, "holds titles of a table"),
        ("a.txt", b"id\tprompt\n1\tcat\n", UsageError, "holds titles of a table"),
        ("a.csv", b"prompt,num_images\ncat,3\n", UsageError, "column 'num_images'"),
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


def test_text_in_brackets_is_a_prompt(tmp_path):
    (tmp_path / "a.txt").write_text("[a red apple]\n{cat}\n(dog)\n")
    assert [prompt.cleaned for prompt in collect([], tmp_path / "a.txt")] == ["a red apple", "cat", "dog"]
    assert [prompt.cleaned for prompt in collect(["[a red apple]", "a prompt, cat"])] == [
        "a red apple",
        "a prompt, cat",
    ]


@pytest.mark.parametrize("prompt", ['{"prompt": "cat"}', "{'prompt': 'cat'}", ' ["cat", "dog"]'])
def test_data_in_place_of_a_prompt_is_refused(prompt):
    with pytest.raises(UsageError, match="is data, not a text"):
        collect([prompt])


def test_a_table_may_begin_with_blank_lines(tmp_path):
    (tmp_path / "a.csv").write_text("\n\nprompt\ncat\n")
    assert [prompt.text for prompt in collect([], tmp_path / "a.csv")] == ["cat"]


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
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode() + bad.encode())
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
