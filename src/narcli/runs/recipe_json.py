"""Fields of a recipe from metadata of files, documents of runs, and ``Recipe.to_json``. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..media.clips import BY_SUFFIX
from ..media.inits import init_of
from ..media.schema import FIELDS
from ..rules import Rule, check
from ..settings import MAX_SCALE, SamplingSettings
from ..settings.keep import KEEPS
from ..settings.sweeps import parse_sweep
from .subjects import SUBJECTS, require, subject_of

SAMPLING = tuple(each.name for each in fields(SamplingSettings))
LOOKS = ("scale", "frames", "fps", "quality")  # recorded under these names
PARTS = ("model", "tokenizer", "text_encoder")  # files of a model, in metadata
_GIVEN, _INIT = FIELDS["frames_from"].rule[1], FIELDS["init"].rule[1]
_FIXED = FIELDS["reproducible"].rule[1]
#: Rules for the JSON of a recipe; ``Recipe`` checks the rest.
_RULES: Mapping[str, Rule] = {
    name: field.rule
    for name, field in FIELDS.items()
    if name not in ("sampling", "classes", "frames_from", "init", "frontier", "reproducible")
} | {
    "sampling": ("an object of numbers", lambda v: isinstance(v, dict) and set(v) <= set(SAMPLING)),
    "classes": ("a list", lambda v: isinstance(v, list)),
    "frames_from": (
        "a list of paths or given frames",
        lambda v: isinstance(v, list) and all(isinstance(e, str) or _GIVEN([e]) for e in v),
    ),
    "init": ("a path, or a given picture", lambda v: isinstance(v, str) or _INIT(v)),
    "frontier": ("an object with its format", lambda v: isinstance(v, dict) and "format" in v),
    "pins": ("an object", lambda v: isinstance(v, dict)),
    "reproducible": ("true, or an object with rows", lambda v: v is True or _FIXED(v)),
}


def read(
    about: Mapping[str, Any], where: str, given: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """Read the fields of a recipe; arguments and errors are those of ``Recipe.from_json``.

    Args:
        about: metadata.
        where: name of the source, for messages.
        given: fields that override it.
        names: names of all fields.
    """
    require(where, about, "kind")
    check(where, "", _RULES, about)
    ranges = {**about.get("sweep", {}), **parse_sweep(given.get("sweep"))}
    sampling = about.get("sampling", {})
    made = _looks(about, given) | {name: sampling[name] for name in sampling if name not in ranges}
    if not set(SUBJECTS) & set(given):
        subject, entries, seed, num = subject_of(about, where)
        made[subject] = entries
    else:
        seed, num = about.get("seed"), about.get("num", 1)
        if "samples" in about:
            *_, seed, num = subject_of(about, where)
    if "init" not in given and "init" in about:
        made["init"] = about["init"] if isinstance(about["init"], str) else init_of(about["init"], where)
    made |= {"kind": about["kind"], "seed": seed, "num": num, "sheet": about.get("contact_sheet", False)}
    frontier = about.get("frontier", {"format": "none"})
    shown = {"frontier_mode": frontier.get("mode"), "theme": frontier.get("theme")}
    if given.get("frontier") == "none" or given.get("sweep"):
        shown = dict.fromkeys(shown)
    made |= {"frontier": frontier["format"], **shown}
    if given.get("sweep"):
        made |= {"sheet": False, "labels": False, "frontier": "none"}
    fixed = about.get("reproducible", False)
    made["reproducible"] = bool(fixed)
    if isinstance(fixed, Mapping):  # of a file, which was drawn in so many rows
        made["batch_size"] = fixed["rows"]
    if "model" not in given:
        made |= _parts(about, given)
    if not {"model", "dtype", "text_encoder"} & set(given):
        made["text_dtype"] = about.get("text_encoder", {}).get("dtype")
    plain_names = set(names) - {*PARTS, "frontier", "theme", "init", *SUBJECTS}
    if set(KEEPS[:4]) & set(given):  # which exclude each other
        plain_names -= set(KEEPS[:4])
    plain = {name: about[name] for name in plain_names if name in about}
    exact = {name: about[name] for name in ("revision", "pins", "text_dtype") if name in about}
    if "model" in given and not about.get("order", "").startswith("zipar"):
        plain.pop("order", None)  # the model has an order of its own
    return plain | made | exact | dict(given)


def _looks(about: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return scale, frames, fps, quality and format of metadata; another format drops those it lacks."""
    looks = {name: about.get(name) for name in LOOKS}
    if (looks["scale"] or 0) > MAX_SCALE:  # the automatic scale of a very small picture
        looks["scale"] = None
    wanted, suffix = given.get("format"), Path(given.get("output") or "").suffix.lower()[1:]
    if wanted is None and f".{suffix}" in BY_SUFFIX:
        wanted = suffix
    if "format" in about:
        looks["format"] = wanted or about["format"]
        if looks["format"] != about["format"]:
            looks["quality"] = None
        if looks["format"] == "frames":
            looks["fps"] = None
    return looks


def _parts(about: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and revisions of a model's files.

    A part in the model's own folder has the model's name, and is left out.
    """
    made: dict[str, Any] = {"pins": {}}
    own = about.get("model", {}).get("name")
    for part in PARTS:
        if part not in about or part in given:
            continue
        file, commit = about[part], about[part].get("commit")
        if part == "model":
            made |= {"model": file["name"], "revision": commit}
        elif file["name"] != own or set(file) == {"name"}:  # a recipe names what it was given
            made[part] = file["name"]
            made["pins"] |= {part: commit} if commit else {}
    return made
