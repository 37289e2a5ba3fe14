"""Subjects of samples, as metadata have them: classes, prompts, or given frames. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..classes import ClassEntry
from ..errors import CheckpointError, UsageError
from ..media.metadata import given_of
from ..prompts import Prompt, parse_prompt
from ..settings import GivenFrames, Sample
from ..settings.sweeps import points_of

TITLED = 3  # classes, prompts or clips that a title names
SUBJECTS = ("classes", "prompts", "frames_from")  # fields of a recipe that say what to make


def require(where: object, about: Mapping[str, Any], *names: str) -> None:
    """Check that metadata have these fields.

    Raises:
        CheckpointError: one is missing; the message names the first.
    """
    for name in names:
        if name not in about:
            raise CheckpointError(f"{where} does not say its {name}.", "Get the original file again.")


def title_of(samples: Sequence[Sample], model: str) -> tuple[str, str, str]:
    """Return words on samples for people: what they are of, their seeds, and their model's name.

    A class has the model's name, as metadata of several samples do not tell what it was asked for as.
    """
    each = (sample.entry for sample in samples)
    named = (entry.name if isinstance(entry, ClassEntry) else str(entry) for entry in each)
    entries = list(dict.fromkeys(named))
    what = ", ".join(entries[:TITLED]) + (f" and {more} more" if (more := len(entries[TITLED:])) else "")
    seeds = [sample.seed for sample in samples]
    first, last = min(seeds), max(seeds)
    return what, f"seed {first}" if first == last else f"seeds {first} to {last}", model


def subject_of(about: Mapping[str, Any], where: object) -> tuple[str, list[Any], int | None, int]:
    """Return what metadata are of.

    Args:
        about: metadata of a file, a document or a recipe.
        where: name of the source, for messages.

    Returns:
        The field of a recipe, one of ``SUBJECTS``; its entries; the first seed; the samples of each. Entries
        are classes (ids, names or metadata), prompts, or given frames (in a recipe also paths).

    Raises:
        CheckpointError: the metadata do not say it.
    """
    seed, num = about.get("seed"), about.get("num", 1)
    entries: list[Any]
    listed = next((name for name in SUBJECTS if name in about), None)
    if "samples" in about:
        each, num = [(entry_of(sample, where), sample["seed"]) for sample in about["samples"]], 1
        points = len(points_of(about.get("sweep", {})))
        each, whole = each[: len(each) // points], each
        while num < len(each) and each[num] == (each[0][0], each[0][1] + num):
            num += 1
        entries = [entry for entry, _ in each[::num]]
        made = [(entry, each[0][1] + k) for entry in entries for k in range(num)] if each else []
        if not each or whole != made * points:
            raise CheckpointError(
                f"The samples of {where} are not those of one run.", "Get the original file."
            )
        listed, seed = None, each[0][1]
    elif listed is not None:
        entries, in_all = [_listed(entry, where) for entry in about[listed]], about.get(f"{listed}_in_all", 0)
        if len(entries) < in_all:
            what = "clips" if listed == "frames_from" else listed
            raise CheckpointError(
                f"{where} holds {len(entries)} of its {in_all} {what}.", "Rerun the files of the samples."
            )
    else:
        entries = [entry_of(about, where)]
    fields = {listed or _FIELDS.get(type(entry), "classes") for entry in entries}
    if len(fields) != 1:
        raise CheckpointError(f"{where} does not say what it is of.", "Get the original file again.")
    return fields.pop(), entries, seed, num


_FIELDS: Mapping[type, str] = {Prompt: "prompts", GivenFrames: "frames_from"}


def _listed(entry: Any, where: object) -> Any:
    """Read an entry of a list of subjects; classes and paths stay as they are."""
    if isinstance(entry, dict) and "prompt" in entry:
        return entry_of(entry, where)
    return given_of(entry, where) if isinstance(entry, dict) and "source" in entry else entry


def entry_of(sample: Mapping[str, Any], where: object) -> Prompt | GivenFrames | dict[str, Any]:
    """Return the prompt or the given frames of a sample, or the metadata of its class.

    A prompt keeps its cleaned text, so that one of an earlier release gives the same tokens.

    Raises:
        CheckpointError: none is there, or it is unusable.
    """
    if "given_frames" in sample:
        return given_of(sample["given_frames"], where)
    if "prompt" not in sample:
        require(where, sample, "class")
        return dict(sample["class"])
    try:
        return parse_prompt(sample["prompt"], sample.get("cleaned_prompt"))
    except UsageError as error:
        raise CheckpointError(f"{where}: {error.message}", "Get the original file again.") from None
