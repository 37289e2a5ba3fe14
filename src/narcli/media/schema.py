"""Fields of the metadata of narcli's files: one table, for writing, reading and the documentation.

A file of one sample has the fields of the run and of the sample. A file of several samples has those of the
run and of all. The JSON document of a run lists the samples. No torch, no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..order import NAME
from ..order.sketches import SKETCH
from ..rules import Rule, number, one_of, sizes_of, whole
from ..settings import MAX_ROWS, MAX_SAMPLES, SEEDS, SamplingSettings
from ..settings.sweeps import MAX_SWEPT, parse_sweep

SCHEMA = "narcli.run/1"
MAX_TEXT = 100_000  # characters
MAX_GRID = 2**18  # cells of a grid
MAX_TOKENS = 4096  # cells of a grid whose tokens are held in the metadata
MAX_HASHES = MAX_SWEPT  # samples whose hashes a file of several samples holds


@dataclass(frozen=True)
class Field:
    """One field.

    Args:
        name: as in the JSON.
        rule: the expected values in words, and their check.
        about: its meaning, for the documentation.
        options: parameters of ``narcli image`` and ``narcli video`` that it stands for.
    """

    name: str
    rule: Rule
    about: str
    options: tuple[str, ...] = ()


# --- rules ---------------------------------------------------------------------------------------


def _text(most: int = MAX_TEXT) -> Rule:
    return f"a text of at most {most} characters", lambda v: isinstance(v, str) and len(v) <= most


def _matching(pattern: str, expected: str) -> Rule:
    return expected, lambda v: isinstance(v, str) and re.fullmatch(pattern, v, re.ASCII) is not None


def _list_of(rule: Rule, most: int = MAX_SAMPLES) -> Rule:
    expected, holds = rule
    return f"a list, each {expected}", lambda v: isinstance(v, list) and len(v) <= most and all(map(holds, v))


def _object(expected: str, needed: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    rules = {**needed, **(optional or {})}

    def holds(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value for name in needed)
            and all(rules[name][1](part) for name, part in value.items() if name in rules)
        )

    return expected, holds


def _is_sampling(value: Any) -> bool:
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,)}
    if not isinstance(value, dict) or set(value) | {"more_smooth"} != set(_SETTINGS):
        return False
    if not all(type(part) in kinds[_SETTINGS[name]] for name, part in value.items()):
        return False
    try:
        SamplingSettings(**value)
    except (UsageError, OverflowError):
        return False
    return True


def _is_sweep(value: Any) -> bool:
    try:
        return isinstance(value, dict) and {k: list(v) for k, v in parse_sweep(value).items()} == value
    except UsageError:
        return False


_SETTINGS: Mapping[str, str] = SamplingSettings.__annotations__
_SAMPLING: Rule = ("the sampling settings; `more_smooth` where it is true", _is_sampling)
_NATURAL = whole(0, 2**63 - 1)
_NAME = _text(300)
_HASH = _matching("[0-9a-f]{64}", "64 hexadecimal digits")
_FILE = _object(
    "an object with a name, and what tells the file from others",
    {"name": _NAME},
    {
        "file": _NAME,
        "repo": _matching(r"[\w-][\w.-]*/[\w-][\w.-]*", "owner/name of the Hub"),
        "commit": _matching("[0-9a-f]{40}", "40 hexadecimal digits"),
        "size": _NATURAL,
        "sha256": _HASH,
        "sha256_of_size_and_ends": _HASH,
        "sha256_of_names_and_ends": _HASH,
        "dtype": one_of("float32", "bfloat16"),
    },
)
_CLASS = _object(
    "an object with id, name and label",
    {"id": _NATURAL, "name": _NAME, "label": _NATURAL},
    {"stands_for": _NAME},
)
_ENTRY: Rule = ("an id, or an object with id, name and label", lambda v: _NATURAL[1](v) or _CLASS[1](v))
_PROMPT = _object("an object with a prompt", {"prompt": _text()}, {"cleaned_prompt": _text()})
_CODES: Mapping[str, Rule] = {
    "tokens_sha256": _HASH,
    "tokens": _matching("[A-Za-z0-9+/]*={0,2}", "base64"),
}
_GIVEN = _object(
    "an object with source, count and tokens_sha256",
    {"source": _NAME, "count": whole(1, 10**5), "tokens_sha256": _HASH},
    {"tokens": _CODES["tokens"]},
)
_RANGE = "[0-9]{1,6}(-[0-9]{1,6})?"
_INIT = _object(
    "an object with source, grid, cells and tokens_sha256",
    {
        "source": _NAME,
        "grid": sizes_of(3, 4096, MAX_GRID),
        "cells": _matching(f"{_RANGE}(,{_RANGE})*", "ranges of numbers"),
        "tokens_sha256": _HASH,
    },
    {"sha256": _HASH, "tokens": _CODES["tokens"]},
)
_SECONDS: Rule = (
    "an object of numbers",
    lambda v: isinstance(v, dict) and all(map(number(0, 1e9)[1], v.values())),
)
_ORDER = _matching(f"{NAME}|{SKETCH}", "the name of an order")
_THEME = one_of("dark", "light")
_ANY: Rule = ("anything", lambda v: True)
_TRUE: Rule = ("true", lambda v: v is True)

# --- the table -----------------------------------------------------------------------------------

RUN = (
    Field("schema", _text(40), f"`{SCHEMA}`; another number is another meaning"),
    Field("command", _NAME, "the command, of a file that no model made"),
    Field("kind", one_of("image", "video"), "what the model makes"),
    Field("narcli", _NAME, "release of narcli"),
    Field("torch", _NAME, "release of torch"),
    Field(
        "model",
        _FILE,
        "name and file; commit of its Hub repository, or size and hash",
        ("model", "revision"),
    ),
    Field("tokenizer", _FILE, "the same of the tokenizer", ("tokenizer",)),
    Field(
        "text_encoder",
        _FILE,
        "the same of the text encoder, and the number format that it computed in",
        ("text_encoder",),
    ),
    Field(
        "sampling",
        _SAMPLING,
        "settings that drew the tokens, of a sweep the first; `cfg_scale` of the order `var` counts from 0",
        tuple(_SETTINGS),
    ),
    Field(
        "init",
        _INIT,
        "picture or clip that was given: name, hash of the file, kept cells in raster order, their tokens",
        ("init", "keep", "keep_mask", "keep_cells", "keep_frames", "fit"),
    ),
    Field("grid", sizes_of(3, 4096, MAX_GRID), "sizes of the token grid"),
    Field(
        "order",
        _ORDER,
        "decoding order of the tokens; `nar` where it is missing",
        ("order",),
    ),
    Field(
        "orders",
        _list_of(_ORDER),
        "orders that a picture of `narcli visualize-order` shows side by side",
    ),
    Field("steps", whole(1, MAX_GRID), "decoding steps"),
    Field("device", one_of("cpu", "cuda", "mps"), "where the model ran", ("device",)),
    Field(
        "dtype",
        one_of("float32", "bfloat16", "float16"),
        "number format that it computed in",
        ("dtype",),
    ),
    Field(
        "reproducible",
        _object(
            "an object with rows",
            {"rows": whole(1, MAX_ROWS)},
            {"card": _NAME, "cuda": _NAME, "cudnn": _NAME},
        ),
        "samples of every batch, where their number was fixed; the card and its libraries",
        ("reproducible",),
    ),
    Field("scale", whole(1, 256), "how many times the pictures were enlarged", ("scale",)),
    Field("filter", one_of("lanczos"), "how"),
    Field("format", one_of("mp4", "gif", "webp", "frames"), "of clips", ("format",)),
    Field("frames", whole(1, 10**5), "frames kept of a clip", ("frames",)),
    Field("model_frames", whole(1, 10**5), "frames that the model made"),
    Field("fps", number(0.01, 1000), "frames per second, as the file shows them", ("fps",)),
    Field("quality", whole(0, 100), "of MP4 and WebP", ("quality",)),
    Field(
        "decoded",
        _object("an object of names", {"narcli": _NAME, "device": _NAME, "dtype": _NAME}),
        "what turned saved tokens into this file, where `narcli decode` did",
    ),
    Field("theme", _THEME, "colours of a picture of `narcli visualize-order`; dark where it is missing"),
    Field(
        "measured", _ANY, "the measurements behind a chart of `narcli bench` or a sheet of `narcli compare`"
    ),
)
SAMPLE = (
    Field("class", _CLASS, "id as asked for, the model's name, row of its embedding", ("classes",)),
    Field("prompt", _text(), "as typed", ("prompt", "prompt_file")),
    Field("cleaned_prompt", _text(), "cleaned, as narcli read it"),
    Field("drawn_as", _text(), "the name that it was drawn as, of a model that knows names"),
    Field("dropped", _text(), "its end, which was too long for the model"),
    Field(
        "given_frames",
        _GIVEN,
        "clip or folder whose first frames were given, how many, and `tokens` of the clip of these, the last "
        "repeated; the sample begins with them, as the tokenizer shows them",
        ("frames_from",),
    ),
    Field("seed", whole(0, SEEDS - 1), "of the sample, or the first of each class or prompt", ("seed",)),
    Field(
        "tokens_sha256",
        _CODES["tokens_sha256"],
        "SHA-256 of the tokens as 32-bit little-endian numbers, raster order",
    ),
    Field(
        "tokens",
        _CODES["tokens"],
        f"the tokens of a grid of up to {MAX_TOKENS} cells: base64 of 16-bit (beyond 65536 codes 32-bit) "
        "little-endian numbers",
    ),
    Field("frame", whole(0, 10**5), "number of the frame, from 0, in a folder of frames"),
)
_ALL = (
    Field("classes", _list_of(_ENTRY), "ids; where there are labels each as `class`", ("classes",)),
    Field("prompts", _list_of(_PROMPT), "the prompts, as far as there is room", ("prompt", "prompt_file")),
    Field("prompts_in_all", whole(1, MAX_SAMPLES), "how many there were"),
    Field("frames_from", _list_of(_GIVEN), "`given_frames`, as far as there is room", ("frames_from",)),
    Field("frames_from_in_all", whole(1, MAX_SAMPLES), "how many there were"),
    Field("num", whole(1, MAX_SAMPLES), "samples of each class, prompt or clip", ("num",)),
    Field("samples_sha256", _list_of(_HASH), f"`tokens_sha256` of the samples, at most {MAX_HASHES}"),
    Field(
        "frontier",
        _object(
            "an object with format and mode",
            {"format": one_of("gif", "mp4", "png", "html"), "mode": one_of("reveal", "decode")},
            {"theme": _THEME},
        ),
        "picture of the decoding frontier, with its `theme` if it is light",
        ("frontier", "frontier_mode", "theme"),
    ),
    Field("contact_sheet", _TRUE, "all pictures on a sheet", ("grid",)),
    Field("labels", _TRUE, "class or prompt, and seed, above each picture of it", ("labels",)),
    Field(
        "sweep",
        ("an object with the values of one or two settings", _is_sweep),
        "values of the rows of a sheet, then of its columns; each combination draws all samples",
        ("sweep",),
    ),
    Field(
        "points",
        _list_of(_SAMPLING, MAX_SWEPT),
        "`sampling` of each combination, row by row; `samples_sha256` has all samples of the first, then of "
        "the next",
    ),
)
_DOCUMENT = (
    Field("files", _list_of(_text(), 3 * MAX_SAMPLES), "the files written"),
    Field(
        "samples",
        _list_of(_object("a sample", {"seed": SAMPLE[5].rule}, {each.name: each.rule for each in SAMPLE})),
        "fields of each sample, and its `file`; of a sweep instead its `sampling`",
    ),
    Field("seconds", _SECONDS, "time that each part took"),
    Field(
        "runs",
        _list_of(("an object", lambda v: isinstance(v, dict) and "runs" not in v)),
        "documents of the runs, where `rerun` and `decode` made several",
    ),
)
#: The fields, by what has them.
PARTS: Mapping[str, tuple[Field, ...]] = {
    "every file of a run": RUN,
    "a file of one sample": SAMPLE,
    "a file of several samples": _ALL,
    "the JSON document of a run": _DOCUMENT,
}
FIELDS: Mapping[str, Field] = {field.name: field for part in PARTS.values() for field in part}
