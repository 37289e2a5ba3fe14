"""Tokenizers of text encoders: their files, and what is refused before they read a prompt."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..media.textfiles import check_regular, read_json, read_text
from ..rules import check, whole

MAX_STEPS, MAX_PIECES = 12, 4  # of a tokenizer: steps of a part, and pieces of a template
MAX_CHARACTER = 256  # bytes that a tokenizer may make of a character
MAX_TOKENIZER = 2**26  # bytes of tokenizer.json


def tokenizer_files(folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Return the used keys of tokenizer_config.json, and the vocabulary's file; None for bytes."""
    config = folder / "tokenizer_config.json"
    options = read_json(config) if os.path.lexists(config) else {}
    check(config, "", {"extra_ids": whole(0, 1000)}, options)
    if options.get("tokenizer_class") == "ByT5Tokenizer":
        return {"extra_ids": options.get("extra_ids", 125)}, None
    tokens = {}
    for name in ("eos_token", "pad_token", "unk_token"):
        token = options.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and 0 < len(token) <= 100 and token.isprintable():
            tokens[name] = token
    vocabulary = folder / "tokenizer.json"
    if os.path.lexists(vocabulary):
        check_regular(vocabulary)
        return tokens, vocabulary
    if os.path.lexists(folder / "spiece.model"):
        raise CheckpointError(
            f"The text encoder in {folder} has only spiece.model as its tokenizer, expected tokenizer.json.",
            "Save it again where sentencepiece is installed: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    raise CheckpointError(  # transformers would silently use an empty vocabulary
        f"The text encoder in {folder} has no tokenizer.json.",
        "Get the folder again, whole, as transformers saved it.",
    )


def read_tokenizer(folder: Path) -> Any:
    """Build the tokenizer from its vocabulary, ignoring everything else in the folder."""
    options, vocabulary = tokenizer_files(folder)
    if vocabulary is None:
        from transformers import ByT5Tokenizer

        return ByT5Tokenizer(**options)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = read_text(vocabulary, "a tokenizer", MAX_TOKENIZER)
    _check_growth(vocabulary, text)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **options)


def _check_growth(path: Path, text: str) -> None:
    """Refuse a tokenizer whose steps could make a text, or its tokens, grow without bound.

    Raises:
        CheckpointError: more than ``MAX_STEPS`` steps or pieces in a row, or a replacement by longer text.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return  # the tokenizer's own reader reports the fault
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    for name in parts if isinstance(document, dict) else ():
        steps, waiting = 0, [document.get(name)]
        while waiting:
            part = waiting.pop()
            if isinstance(part, list):
                steps += len(part)
                waiting += part
            elif isinstance(part, dict):
                waiting += [value for key, value in part.items() if key != "special_tokens"]
                _check_replacement(path, part)
                _check_charsmap(path, part)
                for template in (part.get("single"), part.get("pair")):
                    if isinstance(template, list) and len(template) > MAX_PIECES:
                        steps = MAX_STEPS + 1
            if steps > MAX_STEPS:
                raise CheckpointError(
                    f"{path}: {name} has more than {MAX_STEPS} steps, or {MAX_PIECES} pieces in a template.",
                    "A T5's has a few. Get the original file again.",
                )


def _check_replacement(path: Path, step: Mapping[str, Any]) -> None:
    """Refuse a replacement of text by longer text; a regular expression matches one character or more."""
    pattern, content = step.get("pattern"), step.get("content")
    if not isinstance(content, str):
        return
    match = pattern.get("String") if isinstance(pattern, dict) else pattern
    if len(content) > (len(match) if isinstance(match, str) else 1):
        shown = next(iter(pattern.values()), "") if isinstance(pattern, dict) else pattern
        raise CheckpointError(
            f"{path} replaces {ascii(shown)[:40]} by {ascii(content)[:40]}, expected no longer text.",
            "A T5's replaces spaces by one character. Get the original file again.",
        )


def _check_charsmap(path: Path, step: Mapping[str, Any]) -> None:
    """Refuse a table of characters, sentencepiece's, of which one becomes a long text.

    The table is a number of bytes (uint32), a search tree of this size, and texts that each end with a zero.
    """
    table = step.get("precompiled_charsmap")
    if not isinstance(table, str):
        return
    raw = base64.b64decode(table)
    texts = raw[4 + int.from_bytes(raw[:4], "little") :].split(b"\0")
    if (longest := max(map(len, texts))) > MAX_CHARACTER:
        raise CheckpointError(
            f"{path} replaces a character by {longest:,} bytes, expected at most {MAX_CHARACTER}.",
            "A T5's longest has 33. Get the original file again.",
        )
