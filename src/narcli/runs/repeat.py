"""Repeated runs: recipes of files, the trust that files get, and the comparison of tokens.

Metadata of files are not trusted. They choose no output name, and only models that narcli knows or that are
on this machine; the user has to name others. Every field is checked before use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, NarError, UsageError
from ..hub import catalog, resolve
from ..media.metadata import unpack_tokens
from ..media.schema import FIELDS
from ..order import NAR, Order, format_grid, named
from ..settings.sweeps import points_of, words_of
from .events import Finished
from .recipe import Recipe
from .subjects import SUBJECTS, require, subject_of

About = Mapping[str, Any]

_PARTS = {"model": "model", "tokenizer": "tokenizer", "text_encoder": "text encoder"}
_HASHES = ("commit", "sha256", "sha256_of_size_and_ends", "sha256_of_names_and_ends")
SHOWN = 20  # cells named in a message
MANY = 1000  # samples that files may ask for in all without permission


@dataclass(frozen=True)
class Trust:
    """Choices and permissions of the user, beside those of the files.

    Args:
        given: fields of the recipe that override the files.
        yes: allow downloads that a file chose, and any number of samples.
        allow: called with a sentence before such a download; raises to refuse it. None refuses all.
        warn: called with each warning.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    yes: bool = False
    allow: Callable[[str], None] | None = None
    warn: Callable[[str], object] = warnings.warn


def recipe_of(path: Path, about: About, trust: Trust) -> Recipe:
    """Make the recipe of a file; fields of ``trust.given`` override its own.

    Args:
        path: the file, for messages.
        about: its metadata, as ``media.readers.read_metadata`` returns them.
        trust: choices and permissions of the user.

    Raises:
        UsageError: fields that exclude each other, a model that has to be named, or too many samples.
        CheckpointError: a field is missing.
        NarError: a download was refused.
    """
    if "command" in about:
        raise UsageError(f"{path} is of `narcli {about['command'][:40]}`, not of a run that can be repeated.")
    require(path, about, "kind", "model", "tokenizer", "sampling", "dtype", "grid")
    if "samples" not in about:
        require(path, about, "seed")
    about, given = {name: about[name] for name in FIELDS if name in about}, dict(trust.given)
    subject, *_ = subject_of(about, path)
    parts: dict[str, Any] = {}
    if "model" not in given:  # which brings its own tokenizer and encoder
        kind = {"prompts": "text", "frames_from": "frames"}.get(subject, about["kind"])
        parts = _parts(path, about, kind, trust)
        if "text_encoder" in about and not {"dtype", "text_encoder"} & set(given):
            parts["text_dtype"] = about["text_encoder"].get("dtype")
    recipe = Recipe.from_json(about, str(path), **(parts | given))
    check_many([path], [recipe], trust)
    if "device" not in given and recipe.device not in ("cpu", "auto"):
        given["device"] = _device_here(path, recipe.device, trust)
        recipe = Recipe.from_json(about, str(path), **(parts | given))
    return recipe


def refused(what: str) -> UsageError:
    """The error of a download that a file chose, and nobody allowed."""
    return UsageError(what, "Add `yes` to allow the download.")


def check_many(files: Sequence[Path], recipes: Sequence[Recipe | None], trust: Trust) -> None:
    """Limit the samples that files ask for, over all runs together, to ``MANY``.

    Choices of the user do not count: classes, prompts or clips with ``num``, or ``num`` alone for the single
    sample of a single file.

    Args:
        files: paths of the recipes.
        recipes: recipes of the files; None stands for the picture of an order.
        trust: choices and permissions of the user.

    Raises:
        UsageError: more samples without permission.
    """
    of_others = any(name in trust.given for name in SUBJECTS)
    subjects = samples = 0
    for recipe in recipes:
        count = 1
        if recipe is not None and not (of_others and "num" in trust.given):
            count = (
                len(recipe.texts)
                or len(recipe.clips)
                or sum(len(each.split(",")) if isinstance(each, str) else 1 for each in recipe.entries)
            )
        subjects += count
        samples += count * (1 if recipe is None else recipe.num * len(points_of(recipe.ranges)))
    if samples <= MANY or trust.yes or ("num" in trust.given and subjects == 1):
        return
    each = " for each class, prompt or clip" * (of_others and subjects == len(recipes))
    who = f"{files[0]} asks" if len(files) == 1 else f"The {len(files)} files ask"
    raise UsageError(f"{who} for {samples:,} samples{each}.", "Add `yes` to make all of them.")


def _device_here(path: Path, name: str, trust: Trust) -> str:
    from ..devices import choose_device

    try:
        choose_device(name)
    except UsageError:
        trust.warn(f"{path} was made on {name}, which is not here; its tokens may come out otherwise.")
        return "auto"
    return name


# --- models --------------------------------------------------------------------------------------


def _parts(path: Path, about: About, kind: str, trust: Trust) -> dict[str, Any]:
    """Return the fields of the recipe for the model, tokenizer and text encoder of a file."""
    parts = {"model": find_part(path, about, "model", kind, trust)}
    part_kinds = {"tokenizer": f"{about['kind']}-tokenizer", "text_encoder": "text-encoder"}
    for part, part_kind in part_kinds.items():
        # One in the model's own folder has its name.
        if part in about and part not in trust.given and about[part]["name"] != about["model"]["name"]:
            parts[part] = find_part(path, about, part, part_kind, trust)
    names: dict[str, Any] = {part: name for part, (name, _) in parts.items()}
    _, revision = parts.pop("model")
    pins = {part: commit for part, (_, commit) in parts.items() if commit is not None}
    return names | {"revision": revision, "pins": pins}


def find_part(path: Path, about: About, part: str, kind: str, trust: Trust) -> tuple[str, str | None]:
    """Return the value of ``model`` (or another part) for what a file names, and its commit.

    Raises:
        UsageError: a part on another machine's disk, or of a repository that the user has to name.
        CheckpointError: name and repository do not belong together.
        NarError: the download was refused.
    """
    from ..hub.selection import cached

    said, given = about[part], trust.given
    name, repo, commit = said["name"], said.get("repo"), said.get("commit")
    what, row = _PARTS[part], catalog.MODELS.get(name.lower())
    if repo is None:
        if row is not None and row.path is not None:
            return row.name, None
        default = _default("text" if "text_encoder" in about else about["kind"])
        if part != "text_encoder" and default is not None and default.name == name:
            return str(default.path), None
        raise UsageError(
            f"{path} was made with the {what} {name[:100]!r}, a file or folder on its maker's disk.",
            f"If you have it, say where: `{part}=PATH`",
        )
    if row is not None and row.repo == repo:
        if here := cached(row, commit):
            return row.name, here.commit
        if commit is not None and not (part == "model" and "revision" in given) and not trust.yes:
            sentence = f"{path} was made with commit {commit} of {repo}, which is not on this machine."
            if trust.allow is None:
                raise refused(sentence)
            trust.allow(sentence)
        return row.name, commit
    if ".." in name or (name != repo and not name.startswith(f"{repo}/")):
        raise CheckpointError(
            f"{path}: {name[:100]!r} is not of the repository {repo}.", "It was tampered with."
        )
    model = resolve.resolve(name, kind)
    if model.repo != repo:  # a folder goes before the Hub
        raise UsageError(
            f"{path} was made with the {what} {name} of the Hub, and here a file or folder has that name.",
            f"If that is the one you mean, name it: `{part}={name}`",
        )
    here = None if part == "model" and "revision" in given else cached(model, commit)
    if here is None:
        raise UsageError(
            f"{path} was made with the {what} {name} of the Hub, which narcli does not know, "
            "and which is not on this machine in the revision wanted.",
            f"If you trust it, name it: `{part}={name}`"
            + (f" `revision={commit}`" if part == "model" and commit else ""),
        )
    return name, here.commit


def _default(kind: str) -> catalog.Model | None:
    """Return the default model if it is a file or folder."""
    try:
        model = resolve.resolve(resolve.default_model(kind), kind)
    except NarError:
        return None
    return model if model.path is not None else None


def warn_of_others(path: Path, about: About, common: About, trust: Trust) -> None:
    """Warn of each part that differs from the one that made the file, unless the user chose another."""
    for part, what in _PARTS.items():
        then, now = about.get(part), common.get(part)
        if then and now and (then["name"] == now["name"] or not {part, "model"} & set(trust.given)):
            for key in (key for key in _HASHES if key in then and key in now and then[key] != now[key]):
                trust.warn(f"The {what} {now['name']} is not the one that made {path}: its {key} differs.")
    then, now = about.get("reproducible"), common.get("reproducible")
    for key in ("card", "cuda", "cudnn"):
        if then and now and then.get(key) != now.get(key):
            trust.warn(
                f"{path} was made with {key} {then.get(key, 'unknown')}, and here it is "
                f"{now.get(key, 'none')}: its tokens may come out otherwise."
            )


# --- tokens compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """Tokens of a sample as a file records them.

    Args:
        order: order that they were drawn in.
        sha256: their hash.
        tokens: the tokens in raster order; None if the file has the hash only.
    """

    order: Order
    sha256: str
    tokens: tuple[int, ...] | None


@dataclass(frozen=True)
class Verdict:
    """Comparison of a sample's tokens.

    Args:
        equal: true if all tokens are equal.
        cells: flat indices of the cells that differ; None if unknown.
        words: sentence for people.
    """

    equal: bool
    cells: Sequence[int] | None
    words: str


def recorded(path: Path, about: About) -> list[Recorded]:
    """Return the recorded tokens of each sample of a file.

    Raises:
        CheckpointError: no hashes, more than the file has samples, or tokens that differ from their hash.
    """
    if "samples" in about:
        samples = about["samples"]
    elif "samples_sha256" in about:
        samples = [{"tokens_sha256": known} for known in about["samples_sha256"]]
    else:
        samples = [about]
    if not samples or not all("tokens_sha256" in sample for sample in samples):
        raise CheckpointError(f"{path} holds no hash of its tokens.", "Leave `verify` out.")
    _, entries, _, num = subject_of(about, path)
    if len(samples) > len(entries) * num * len(points_of(about.get("sweep", {}))):
        raise CheckpointError(f"{path} holds hashes of more samples than it is of.", "Get the original file.")
    order = named(about.get("order", NAR), tuple(about["grid"]))
    return [
        Recorded(order, each["tokens_sha256"], unpack_tokens(path, each, order.cells)) for each in samples
    ]


def compare(path: Path, before: Sequence[Recorded], run: Finished) -> Iterator[Verdict]:
    """Compare the tokens of each sample of a run with those of a file.

    Args:
        path: the file, for messages.
        before: its recorded tokens.
        run: end of the run that repeated it.

    Yields:
        A ``Verdict`` for each sample.
    """
    order = named(run.common.get("order", NAR), tuple(run.common["grid"]))
    points = [f", {words_of(point)}" if point else "" for point in points_of(run.recipe.ranges)]
    each = len(run.samples) // len(points)
    for index, (then, now, sample) in enumerate(zip(before, run.documents, run.samples, strict=False)):
        where = f"{path}, {sample.entry}, seed {sample.seed}" if len(before) > 1 else f"{path}"
        where += points[index // each]
        if then.order.panels != order.panels:
            what, old, here = "grid", format_grid(then.order.sizes), format_grid(order.sizes)
            if old == here:
                what, old, here = "order", then.order.name, order.name
            yield Verdict(False, None, f"{where}: its {what} is {old}, and here {here}.")
        elif then.sha256 == now["tokens_sha256"]:
            yield Verdict(True, [], f"{where}: the tokens are equal, all {order.cells}.")
        elif then.tokens is None or (after := unpack_tokens(path, now, order.cells)) is None:
            yield Verdict(False, None, f"{where}: the tokens differ; it holds their hash only, so not which.")
        else:
            pairs = enumerate(zip(then.tokens, after, strict=True))
            cells = [cell for cell, (old, new) in pairs if old != new]
            listed = ", ".join(map(str, cells[:SHOWN])) + (", ..." if len(cells) > SHOWN else "")
            first = min(order.step_of[cell] for cell in cells) + 1
            yield Verdict(
                False,
                cells,
                f"{where}: {len(cells)} of {order.cells} tokens differ, from step {first} on: "
                f"cells {listed}.",
            )
