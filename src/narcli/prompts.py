"""Prompts: parsing, cleaning for the text encoder, and lists of them in files. No torch.

The released text models learned from cleaned captions, and prompts are cleaned in exactly the same way: lower
case, without the addresses, mentions, article numbers, sizes and Chinese characters of web pages.
tests/data/prompt_cleaning*.json hold pairs of the released code.
"""

from __future__ import annotations

import ast
import csv
import html
import io
import json
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

from .errors import CheckpointError, UsageError
from .media.textfiles import decode_text, read_text, split_lines

MAX_PROMPT = 10_000  # characters; the released encoder reads some 500
MAX_JSON = 20_000  # bytes in metadata, which hold a prompt up to three times; an emoji takes 12
MAX_BYTES = 2**26  # of a file of prompts
SHOWN = 60  # characters of a prompt, in messages
STDIN = "-"
_AS_TEXT = "Give a prompt a line as .txt, or a .csv or .tsv with a column 'prompt'."
_DATA = (".json", ".jsonl", ".ndjson", ".yaml", ".yml")
#: Columns of tables that would set options, which hold for all prompts of a run.
_SETTINGS = {
    "class", "classes", "class_id", "class_name", "n", "num", "num_images", "num_samples", "seed", "seeds",
    "cfg", "cfg_scale", "guidance_scale", "cfg_interval", "steps", "temperature", "top_k", "top_p",
    "model", "tokenizer", "text_encoder", "negative", "negative_prompt", "device", "dtype", "batch_size",
    "output", "scale", "frames", "fps",
}  # fmt: skip

_FORMATS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DOMAINS = "com|co|ru|net|org|edu|gov|it"
#: Matches an address, or as its group a run without one, which keeps the search linear.
_ADDRESS = rf"\b(?:%s:(?:/{{1,3}}|[a-z0-9%%])|[a-z0-9.-]+\.(?:{_DOMAINS})[\w/-]*\b/?(?!@)|([a-z0-9.-]*[.-]))"
_DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _compiled(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


#: Patterns and replacements, in this order. Lookbehinds only spare repeated scans of a run.
_BEFORE_HTML = _compiled(
    ("<person>", "person"),  # stands for names in the captions
    (_ADDRESS % "https?", r"\1"),
    (_ADDRESS % "www", r"\1"),
)
_BEFORE_REPAIR = _compiled(
    (r"@\w+\b", ""),  # mentions
    ("[\u31c0-\u9fff]+", ""),  # Chinese characters and symbols
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),  # article numbers
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.(?:{_FORMATS})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)
_AFTER_REPAIR = _compiled(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),  # words of web shops
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FORMATS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*\b", " "),
    (r"\b\d+(?:\.\d*)?[x\u0445\u00d7]\d+(?:\.\d*)?\b", ""),  # sizes
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,:+\-]$", ""),
    (r"^\.\S+$", ""),
)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        text: as typed, without white space at its ends.
        cleaned: text that the encoder reads.
    """

    text: str
    cleaned: str

    def __str__(self) -> str:
        return shorten(self.text)


def parse_prompt(text: str, cleaned: str | None = None) -> Prompt:
    """Check and clean a prompt.

    Args:
        text: as typed.
        cleaned: text that the encoder read in an earlier run, used unchanged; None cleans ``text``.

    Raises:
        UsageError: it is empty before or after cleaning, too long, also for metadata, or has control
            characters.
    """
    text = text.strip()
    if not text:
        raise UsageError("The prompt is empty.", "Say what to draw: `prompts='a red apple'`.")
    if len(text) > MAX_PROMPT:
        raise UsageError(
            f"The prompt has {len(text):,} characters, expected at most {MAX_PROMPT:,}.",
            "For a prompt a line, give the file as `prompt_file`.",
        )
    if cleaned is None:
        cleaned = clean(text)
    for character in text + cleaned:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UsageError("The prompt is not valid UTF-8.", "Check the encoding of the terminal or file.")
        if kind == "Cc" and not character.isspace():
            raise UsageError(
                f"The prompt {shorten(text)!r} holds the control character U+{ord(character):04X}.",
                "Leave it out.",
            )
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
    """Clean a prompt as the released text models' captions were; the result may be empty.

    The released procedure runs twice, the second time on its own result.
    """
    return _clean_once(_clean_once(text))


def _clean_once(text: str) -> str:
    from ftfy import fix_text

    text = _substitute(_BEFORE_HTML, unquote_plus(text).strip().lower())
    text = _substitute(_BEFORE_REPAIR, _html_text(text))
    if len(re.findall("[-_]", text)) > 3:
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(fix_text(text))).strip()
    return _substitute(_AFTER_REPAIR, text).strip()


def _substitute(rules: Iterable[tuple[re.Pattern[str], str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _html_text(text: str) -> str:
    """Return the text of HTML; markup that the parser rejects stays as it is."""
    if "<" not in text and "&" not in text:
        return text
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    with warnings.catch_warnings(), suppress(ParserRejectedMarkup, RecursionError, UnicodeError):
        warnings.simplefilter("ignore")  # about prompts that look like addresses, file names or XML
        return str(BeautifulSoup(text, "html.parser").text)
    return text


def collect(
    prompts: Sequence[str], file: Path | None = None, tell: Callable[[str], object] = warnings.warn
) -> list[Prompt]:
    """Collect the prompts of ``--prompt`` and ``--prompt-file``, in that order.

    Args:
        prompts: as typed; ``-`` stands for the lines of the standard input.
        file: a prompt a line, or ``.csv`` or ``.tsv`` with a column ``prompt``; blank ones are skipped.
        tell: called with a note about columns that are not used.

    Raises:
        UsageError: as ``parse_prompt``, with the place in the file; no such file or column, or no prompts.
        CheckpointError: a file that cannot be read.
    """
    found = []
    for prompt in prompts:
        if prompt == STDIN:
            found += _parse_lines("the standard input", enumerate(split_lines(_stdin()), 1))
        elif _is_data(prompt):
            raise UsageError(f"The prompt {shorten(prompt)} is data, not a text.", _AS_TEXT)
        else:
            found.append(parse_prompt(prompt))
    if file is not None:
        if file.suffix.lower() in _DATA:
            raise UsageError(f"{file} is not a text file or table.", _AS_TEXT)
        text = _read(file)
        table = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
        lines = enumerate(split_lines(text), 1) if table is None else _column(file, text, table, tell)
        found += _parse_lines(str(file), lines)
    return found


def shorten(text: str, length: int = SHOWN) -> str:
    """Put text on one line, and cut it at ``length`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def slug(text: str) -> str:
    """Turn a prompt into a part of file names: ``A red apple!`` gives ``a-red-apple``; may be empty."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower().replace("'", ""))
    name = ""
    for word in words:
        if len(f"{name}-{word}") > SHOWN:
            break
        name += f"-{word}" if name else word
    return name or "".join(words[:1])[:SHOWN]


def _parse_lines(where: str, lines: Iterable[tuple[int, str]]) -> list[Prompt]:
    """The prompts of a file, each with the number of its line."""
    found: list[Prompt] = []
    for number, line in lines:
        if _is_data(line):
            raise UsageError(f"Line {number} of {where} is data, not a text: {shorten(line)}", _AS_TEXT)
        if not found and _is_titles(line):
            raise UsageError(f"Line {number} of {where} holds titles of a table: {shorten(line)}", _AS_TEXT)
        if line.strip():
            try:
                found.append(parse_prompt(line))
            except UsageError as error:
                hint = error.hint if "`" not in (error.hint or "") else "Expected a prompt a line."
                raise UsageError(f"Line {number} of {where}: {error.message}", hint) from None
    if not found:
        raise UsageError(f"There are no prompts in {where}.", "Expected a prompt a line.")
    return found


def _is_titles(line: str) -> bool:
    """Tell whether a line holds the titles of a table, one of them ``prompt``."""
    titles = [title.split() for title in re.split(r"[,;|\t]", line.lower())]
    return len(titles) > 1 and ["prompt"] in titles and all(len(words) < 2 for words in titles)


def _is_data(text: str) -> bool:
    """Tell whether a text is an object or list of JSON or Python, and not empty."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return bool(read(text.strip()))
    return False


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


def _column(file: Path, text: str, delimiter: str, tell: Callable[[str], object]) -> list[tuple[int, str]]:
    """Return the column ``prompt`` of a table with titles, each value with the line on which its row begins.

    Raises:
        UsageError: no or two such columns, one that would set an option, or a row with too many values.
    """
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
    while rows and not any(rows[0][1]):
        del rows[0]
    titles = [title.strip().lower() for title in rows[0][1]] if rows else []
    if "prompt" not in titles:
        has = f"It has {', '.join(titles)[:200]}." if titles else "It is empty."
        raise UsageError(f"{file} has no column 'prompt'. {has}", "For a prompt a line, name it .txt.")
    words = {title: re.sub(r"[\s-]", "_", title.lstrip("-")) for title in titles}
    if unused := [title for title, word in words.items() if word in _SETTINGS]:
        raise UsageError(
            f"{file} has a column {unused[0][:40]!r}, and a table sets prompts only.",
            "Take the column out, and give the value as an option, for all prompts of a run.",
        )
    if titles.count("prompt") > 1:
        raise UsageError(f"{file} has several columns 'prompt'.", "Take out all but one.")
    for number, row in rows:
        if len(row) > len(titles):
            raise UsageError(
                f"Line {number} of {file} has {len(row)} values, and there are {len(titles)} columns.",
                'Put a prompt with a comma or tab into quotes: "a cat, asleep".',
            )
    if others := [shorten(title, 40) for title in titles if title not in ("", "prompt")]:
        tell(f"{file}: only the column 'prompt' is used, not {', '.join(others[:10])}.")
    place = titles.index("prompt")
    return [(number, row[place] if place < len(row) else "") for number, row in rows[1:]]
