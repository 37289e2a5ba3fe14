"""Prompts: what was typed, what the text encoder reads, and lists of them from files. No torch.

The released text models learned from captions that were cleaned in a particular way, so prompts are cleaned
likewise: lower case, and no addresses, mentions, numbers of tags, sizes or Chinese characters, which the
captions of web pages are full of. tests/data/prompt_cleaning.json holds pairs of the released code.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError, UsageError
from .textfiles import decode_text, read_text, split_lines

MAX_PROMPT = 10_000  # characters; the released encoder reads some 500
MAX_JSON = 20_000  # bytes in the metadata of a file, where an emoji takes 12; it is there up to three times
MAX_BYTES = 2**26  # of a file of prompts
SHOWN = 60  # characters of a prompt, in messages
STDIN = "-"

_FORMATS = "png|jpe?g|bmp|webp|gif|eps|pdf|apk|mp4"
_DOMAINS = "com|co|ru|net|org|edu|gov|it"
#: What is replaced, in this order, in text that is lower case already.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("<person>", "person"),  # stands for names in the captions
        (r"</?[a-z][^<>]{0,200}>", " "),  # HTML
        (rf"https?:/+\S*?(?=\.(?:{_FORMATS})\b|\s|$)", " "),  # addresses
        (rf"(?<![\w.-])(?:[\w-]+\.)+(?:{_DOMAINS})\b[\w/-]*", " "),
        (r"@\w+", " "),  # mentions
        (r"#(?:\d{1,3}|\d{5,})\b", " "),  # numbers of tags and articles
        ("[\u31c0-\u9fff]", " "),  # Chinese characters and what surrounds them in Unicode
        ("[\u2010-\u2015\u2212\u2e3a\u2e3b\ufe58\ufe63\uff0d]", "-"),
        ("[\u201c\u201d\u201e\u00ab\u00bb]", '"'),
        ("[`\u00b4\u2018\u2019]", "'"),
        (r"\b\d{1,3}(?:\.\d{1,3}){3}\b", " "),  # numbers of machines
        (rf"(?<![\w-])[\w-]+\.(?:{_FORMATS})\b|\b(?:{_FORMATS})\b", " "),  # names of files
        (r"\b(?:[a-z]{1,3}\d{3,15}|\d{6,})\b", " "),  # numbers of articles
        (r"\b\d+\.?\d*\s?[x\u00d7]\s?\d+\.?\d*\b", " "),  # sizes
        (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*<>]+", " "),
        (r'"{2,}', '"'),
        (r"'{2,}", "'"),
        (r"\.{2,}", " "),
        (r"\s+", " "),
    )
)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        text: as it was typed, white space at its ends left out.
        cleaned: what the text encoder reads.
    """

    text: str
    cleaned: str

    def __str__(self) -> str:
        return shorten(self.text)


def parse_prompt(text: str) -> Prompt:
    """Check and clean a prompt.

    Raises:
        UsageError: it is empty, too long, also for the metadata of a file, holds control characters, or
            nothing is left of it.
    """
    text = text.strip()
    if not text:
        raise UsageError("The prompt is empty.", "Say what to draw: --prompt 'a red apple'.")
    if len(text) > MAX_PROMPT:
        raise UsageError(
            f"The prompt has {len(text):,} characters, expected at most {MAX_PROMPT:,}.",
            "For a prompt a line, give the file as --prompt-file.",
        )
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UsageError("The prompt is not valid UTF-8.", "Check the encoding of the terminal or file.")
        if kind == "Cc" and not character.isspace():
            raise UsageError(
                f"The prompt {shorten(text)!r} holds the control character U+{ord(character):04X}.",
                "Leave it out.",
            )
    cleaned = clean(text)
    if not any(unicodedata.category(character)[0] in "LNS" for character in cleaned):
        raise UsageError(
            f"Nothing is left of the prompt {shorten(text)!r} once it is cleaned for the text encoder.",
            "Addresses, mentions, sizes and Chinese characters are left out. Describe it in English.",
        )
    if (size := max(len(json.dumps(each)) for each in (text, cleaned))) > MAX_JSON:
        raise UsageError(
            f"The prompt {shorten(text)!r} takes {size:,} bytes of a file's metadata, "
            f"expected at most {MAX_JSON:,}.",
            "Shorten it: a letter beyond ASCII takes 6, an emoji 12.",
        )
    return Prompt(text, cleaned)


def clean(text: str) -> str:
    """What the text encoder reads of a prompt; empty where nothing is left."""
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text))).lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.strip()


def collect(prompts: Sequence[str], file: Path | None = None) -> list[Prompt]:
    """The prompts of ``--prompt`` and ``--prompt-file``, in that order.

    Args:
        prompts: as typed; ``-`` stands for the lines of the standard input.
        file: a prompt a line, or ``.csv`` or ``.tsv`` with a column ``prompt``; blank ones are skipped.

    Raises:
        UsageError: as ``parse_prompt``, with the place in the file; no such file or column, or no prompts.
        CheckpointError: a file that cannot be read.
    """
    found = []
    for prompt in prompts:
        if prompt == STDIN:
            found += _parse_lines("the standard input", enumerate(split_lines(_stdin()), 1))
        else:
            found.append(parse_prompt(prompt))
    if file is not None:
        text = _read(file)
        table = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
        lines = enumerate(split_lines(text), 1) if table is None else _column(file, text, table)
        found += _parse_lines(str(file), lines)
    return found


def shorten(text: str, length: int = SHOWN) -> str:
    """Text on one line, cut where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def slug(text: str) -> str:
    """A prompt as a part of file names: ``A red apple!`` -> ``a-red-apple``; may be empty."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower().replace("'", ""))
    name = ""
    for word in words:
        if len(f"{name}-{word}") > SHOWN:
            break
        name += f"-{word}" if name else word
    return name or "".join(words[:1])[:SHOWN]


def _parse_lines(where: str, lines: Iterable[tuple[int, str]]) -> list[Prompt]:
    """The prompts of a file, each with the number of its line."""
    found = []
    for number, line in lines:
        if line.strip():
            try:
                found.append(parse_prompt(line))
            except UsageError as error:
                hint = error.hint if "--" not in (error.hint or "") else "Expected a prompt a line."
                raise UsageError(f"Line {number} of {where}: {error.message}", hint) from None
    if not found:
        raise UsageError(f"There are no prompts in {where}.", "Expected a prompt a line.")
    return found


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("There is no standard input to read prompts from.", "Give the prompts themselves.")
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"The standard input is larger than {MAX_BYTES:,} bytes.")
    return decode_text(data, "The standard input") if isinstance(data, bytes) else str(data)


def _read(file: Path) -> str:
    if not file.exists():
        raise UsageError(f"There is no file {file}.", "Check the path.")
    return read_text(file, "a file of prompts", MAX_BYTES)


def _column(file: Path, text: str, delimiter: str) -> list[tuple[int, str]]:
    """The column ``prompt`` of a table with a line of titles, each with the line on which its row begins."""
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for row in reader:
            rows.append((begin, row))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise CheckpointError(
            f"{file} is not a table: {error} (line {begin}).", "For a prompt a line, name it .txt."
        ) from None
    titles = [title.strip().lower() for title in rows[0][1]] if rows else []
    if "prompt" not in titles:
        has = f"It has {', '.join(titles)[:200]}." if titles else "It is empty."
        raise UsageError(f"{file} has no column 'prompt'. {has}", "For a prompt a line, name it .txt.")
    place = titles.index("prompt")
    return [(number, row[place] if place < len(row) else "") for number, row in rows[1:]]
