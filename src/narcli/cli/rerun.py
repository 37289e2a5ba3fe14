"""``narcli rerun``: a file made again from what it says about itself.

What a file says is not trusted. It chooses no name of an output, and no model but those that narcli knows
or that are on this machine: other ones have to be named by a person. Every field is checked before use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CheckpointError, NarError, UsageError
from ..hub import catalog, resolve
from ..media.metadata import SCHEMA, runs_of, unpack_tokens
from ..media.textfiles import expand
from ..order import format_grid, neighbor
from ..prompts import Prompt, parse_prompt
from .console import Console
from .image import Pictures, image
from .options import Dtype, FrontierFormat, FrontierMode
from .run import MAX_SCALE, Run
from .video import ClipFormat, Clips, video
from .visualize_order import check_size, write_order
from .visualize_order import document as order_document

About = Mapping[str, Any]
Recorded = tuple[tuple[int, ...], str, tuple[int, ...] | None]  # grid, hash and tokens of a sample

_RUNS: Mapping[str, tuple[type[Run], Callable[..., None]]] = {
    "image": (Pictures, image),
    "video": (Clips, video),
}
_SUBJECT = ("classes", "prompt", "prompt_file")  # options that say what to make
_SAMPLES = (*_SUBJECT, "num", "seed")
_SPELLED = {"classes": "class", "as_json": "json"}
_PARTS = {"model": "model", "tokenizer": "tokenizer", "text_encoder": "text encoder"}
_HASHES = ("commit", "sha256", "sha256_of_size_and_ends", "sha256_of_names_and_ends")
SHOWN = 20  # cells named in a message
MANY = 1000  # samples that files may have made, in all, without being asked


def takes(names: Collection[str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of ``image`` and ``video``, or some of them; None is "not given"."""
    found = {}
    for command in (image, video):
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
            kind, info = parameter.annotation.__origin__, copy(parameter.annotation.__metadata__[0])
            if names is None or name in names:
                info.show_default = False
                hint = Annotated[kind if kind is bool else kind | None, info]  # type: ignore[valid-type]
                default = False if kind is bool else None
                found[name] = parameter.replace(
                    kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default
                )

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        command.__signature__ = inspect.Signature([*kept, *found.values()])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*kept, *found.values())}
        return command

    return give


@takes()
def rerun(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", parser=expand, help="PNG, MP4, GIF, WebP, tokens, or a --json document."
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Also compare the tokens with those of the file; 1 if they differ."),
    ] = False,
    **given: Any,
) -> None:
    """Make files again, from what they say about themselves.

    Any other option goes before what the file says; they are those of narcli image and narcli video. Nothing
    is overwritten unless asked: a name that is taken gets a number.
    """
    from ..media.readers import read_metadata

    given, console = options_given(given), Console(given["quiet"])
    if verify and given["dry_run"]:
        raise UsageError("--verify compares tokens, and --dry-run draws none.", "Drop one of them.")
    if verify and (named := [name for name in _SAMPLES if name in given]):
        raise UsageError(f"--verify compares the same samples; {_flag(named[0])} makes others.", "Drop one.")
    abouts = [(path, about) for path in files for about in runs_of(read_metadata(path))]
    runs = [_plan(path, about, given, console) for path, about in abouts]
    _check_many(files, runs, given)
    recorded = [_recorded(path, about) if verify else [] for path, about in abouts]
    verdicts: list[bool] = []
    made: list[Path] = []
    previous: Run | None = None
    with collected(given, console) as documents:
        for (path, about), run, before in zip(abouts, runs, recorded, strict=True):
            if run is None:
                documents.append(_order_again(path, about, given, console, made))
                made.append(Path(documents[-1]["file"]))
                continue
            run.reserved, run.put = tuple(made), documents.append
            run.make(previous)
            made += run.names
            if run.dry_run:
                continue
            previous = run
            warn_of_others(path, about, run.common, given, console)
            run.report()
            verdicts += _verify(path, before, run, documents[-1] if run.as_json else {}, console)
    if not all(verdicts):
        raise NarError(
            f"The tokens of {verdicts.count(False)} of {len(verdicts)} samples are not those of the files.",
            "Another processor, number format, model, release or compilation may round otherwise; "
            "`narcli show FILE` says what made it.",
        )


@contextmanager
def collected(given: Mapping[str, Any], console: Console) -> Iterator[list[dict[str, Any]]]:
    """A list of documents, one a run; with ``--json`` they are printed, even where a later run failed."""
    documents: list[dict[str, Any]] = []
    try:
        yield documents
    finally:
        if given["as_json"] and documents:
            console.json({"schema": SCHEMA, "runs": documents})


# --- from metadata to options --------------------------------------------------------------------


def options_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, and the switches."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _flag(option: str) -> str:
    return "--" + _SPELLED.get(option, option).replace("_", "-")


def require(path: Path, about: About, *names: str) -> None:
    """Refuse a file that does not say these fields."""
    for name in names:
        if name not in about:
            raise CheckpointError(f"{path} does not say its {name}.", "Get the original file again.")


def _plan(path: Path, about: About, given: Mapping[str, Any], console: Console) -> Run | None:
    """The run that a file tells of, with the options given; None for a file of ``visualize-order``."""
    if about.get("command") == "visualize-order":
        require(path, about, "grid")
        check_size(tuple(about["grid"]))
        allowed = {"output", "overwrite", "as_json", "quiet"}
        if other := [name for name in given if name not in allowed and given[name] is not False]:
            raise UsageError(f"{path} shows an order, to which {_flag(other[0])} does not apply.", "Drop it.")
        return None
    if "command" in about:
        raise UsageError(f"{path} is of `narcli {about['command'][:40]}`, not of a run that can be repeated.")
    require(path, about, "kind", "model", "tokenizer", "sampling", "dtype", "grid")
    entries, seed, num = _subject(path, about)
    said = dict(about["sampling"]) | looks_of(about, given) | {"seed": seed, "num": num}
    said |= {"device": about.get("device", "auto"), "dtype": Dtype(about["dtype"])}
    if "frontier" in about:
        said["frontier"] = FrontierFormat(about["frontier"]["format"])
        said["frontier_mode"] = FrontierMode(about["frontier"]["mode"])
    else:
        said["frontier"] = FrontierFormat.none
    said["grid"] = about.get("contact_sheet", False)
    if given.get("frontier") == "none":
        said.pop("frontier_mode", None)
    of_text, of_others = isinstance(entries[0], Prompt), any(name in given for name in _SUBJECT)
    if not of_text and not of_others:
        said["classes"] = entries
    pins: dict[str, str | None] = {}
    if "model" not in given:  # which brings its own tokenizer and encoder
        found = _models(path, about, "text" if of_text else about["kind"], given, console)
        said |= {part: name for part, (name, _) in found.items()} | {"revision": found["model"][1]}
        pins = {part: commit for part, (_, commit) in found.items()}
    run = build_run(about["kind"], said, given)
    run.pins = pins
    if of_text and not of_others:
        run.prompts = entries
    _check_many([path], [run], given)
    if not {"model", "dtype", "text_encoder"} & set(given) and "text_encoder" in about:
        run.text_dtype = about["text_encoder"].get("dtype")
    if "device" not in given and run.device not in ("cpu", "auto"):
        run.device = _device_here(path, run.device, console)
    return run


def _check_many(files: Sequence[Path], runs: Sequence[Run | None], given: Mapping[str, Any]) -> None:
    """Refuse more samples, of all the runs together, than files may have made without being asked.

    What a person typed is not counted: their classes or prompts with their ``--num``, or that alone for
    the one sample of one file.
    """
    of_others = any(name in given for name in _SUBJECT)
    subjects = samples = 0
    for run in runs:
        count = 1
        if run is not None and not (of_others and "num" in given):
            classes = run.classes.split(",") if isinstance(run.classes, str) else run.classes
            count = len(run.prompts or classes or ("",))
        subjects += count
        samples += count * (1 if run is None else run.num)
    if samples <= MANY or given.get("yes") or ("num" in given and subjects == 1):
        return
    each = " for each class or prompt" * (of_others and subjects == len(runs))
    who = f"{files[0]} asks" if len(files) == 1 else f"The {len(files)} files ask"
    raise UsageError(f"{who} for {samples:,} samples{each}.", "Add --yes to make all of them.")


def build_run(kind: str, said: Mapping[str, Any], given: Mapping[str, Any]) -> Run:
    """A run with the options given, else those that the file says, else the command's defaults."""
    made, command = _RUNS[kind]
    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    if other := [name for name in given if name not in defaults and given[name] is not False]:
        raise UsageError(f"{_flag(other[0])} is not for {kind}s.", "Drop it.")
    chosen = {name: value for name, value in given.items() if value is not False}
    return made(**{name: chosen.get(name, said.get(name, value)) for name, value in defaults.items()})


def looks_of(about: About, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of how pictures and clips are written; less where it is another format now."""
    said = {name: about[name] for name in ("scale", "frames", "fps", "quality") if name in about}
    if said.get("scale", 0) > MAX_SCALE:  # that of a very small picture, which nobody chose
        del said["scale"]
    wanted = given.get("format")
    if wanted is None and (suffix := Path(given.get("output") or "").suffix.lower()[1:]) in _FORMATS:
        wanted = ClipFormat(suffix)
    if "format" in about:
        said["format"] = wanted or ClipFormat(about["format"])
        if said["format"].value != about["format"]:
            said = {name: said[name] for name in said if name != "quality"}
        if said["format"] == ClipFormat.frames:
            said.pop("fps", None)
    return said


_FORMATS = [format.value for format in ClipFormat if format != ClipFormat.frames]


def _subject(path: Path, about: About) -> tuple[list[Any], int, int]:
    """The classes (as metadata) or prompts that a file is of, the first seed, and the samples of each.

    Raises:
        CheckpointError: it does not say.
    """
    if "samples" in about:
        each = [(entry_of(path, sample), sample["seed"]) for sample in about["samples"]]
        num = 1
        while num < len(each) and each[num] == (each[0][0], each[0][1] + num):
            num += 1
        entries = [entry for entry, _ in each[::num]]
        if not each or each != [(entry, each[0][1] + k) for entry in entries for k in range(num)]:
            raise CheckpointError(
                f"The samples of {path} are not those of one run.", "Get the original file."
            )
        seed: int = each[0][1]
    else:
        require(path, about, "seed")
        seed, num = about["seed"], about.get("num", 1)
        if "classes" in about:
            entries = [{"id": id} for id in about["classes"]]
        elif "prompts" in about:
            entries = [entry_of(path, prompt) for prompt in about["prompts"]]
            if len(entries) < about.get("prompts_in_all", 0):
                raise CheckpointError(
                    f"{path} holds {len(entries)} of its {about['prompts_in_all']} prompts.",
                    "Rerun the files of the samples.",
                )
        else:
            entries = [entry_of(path, about)]
    if not entries or len({type(entry) for entry in entries}) > 1:
        raise CheckpointError(f"{path} does not say what it is of.", "Get the original file again.")
    return entries, seed, num


def entry_of(path: Path, sample: About) -> Prompt | dict[str, Any]:
    """Return the prompt, or the class as metadata, that a sample is of.

    A prompt keeps its cleaned text: that of an earlier release gives the same tokens again.

    Raises:
        CheckpointError: it names neither, or the prompt is unusable.
    """
    if "prompt" not in sample:
        require(path, sample, "class")
        return dict(sample["class"])
    try:
        return parse_prompt(sample["prompt"], sample.get("cleaned_prompt"))
    except UsageError as error:
        raise CheckpointError(f"{path}: {error.message}", "Get the original file again.") from None


def _device_here(path: Path, name: str, console: Console) -> str:
    from ..devices import choose_device

    try:
        choose_device(name)
    except UsageError:
        console.warn(f"{path} was made on {name}, which is not here; its tokens may come out otherwise.")
        return "auto"
    return name


# --- models --------------------------------------------------------------------------------------


def _models(
    path: Path, about: About, kind: str, given: Mapping[str, Any], console: Console
) -> dict[str, tuple[str, str | None]]:
    """The options ``model``, ``tokenizer`` and ``text_encoder`` for what a file names, and their commits."""
    found = {"model": find_part(path, about, "model", kind, given, console)}
    part_kinds = {"tokenizer": f"{about['kind']}-tokenizer", "text_encoder": "text-encoder"}
    for part, part_kind in part_kinds.items():
        # One in the model's own folder has its name.
        if part in about and part not in given and about[part]["name"] != about["model"]["name"]:
            found[part] = find_part(path, about, part, part_kind, given, console)
    return found


def find_part(
    path: Path, about: About, part: str, kind: str, given: Mapping[str, Any], console: Console
) -> tuple[str, str | None]:
    """What a person would give as ``--model`` (or another part) for what a file names, and the commit.

    Raises:
        UsageError: it is on somebody's disk, of a repository that nobody here has named, or a commit to
            download that nobody has allowed.
        CheckpointError: name and repository do not belong together.
        NarError: the answer is no.
    """
    from ..hub.selection import cached

    said = about[part]
    name, repo, commit = said["name"], said.get("repo"), said.get("commit")
    what, row = _PARTS[part], catalog.MODELS.get(name.lower())
    if repo is None:
        if row is not None and row.path is not None:
            return (row.name if row.kind == kind else str(row.path)), None
        default = _default("text" if "text_encoder" in about else about["kind"])
        if part != "text_encoder" and default is not None and default.name == name:
            return str(default.path), None
        raise UsageError(
            f"{path} was made with the {what} {name[:100]!r}, a file or folder on its maker's disk.",
            f"If you have it, say where: {_flag(part)} PATH",
        )
    if row is not None and row.repo == repo:
        if here := cached(row, commit):
            return row.name, here.commit
        if commit is not None and not (part == "model" and "revision" in given):
            _allow(
                f"{path} was made with commit {commit} of {repo}, which is not on this machine.",
                given,
                console,
            )
        return row.name, commit
    if ".." in name or (name != repo and not name.startswith(f"{repo}/")):
        raise CheckpointError(
            f"{path}: {name[:100]!r} is not of the repository {repo}.", "It was tampered with."
        )
    model = resolve.resolve(name, kind)
    if model.repo != repo:  # a folder goes before the Hub
        raise UsageError(
            f"{path} was made with the {what} {name} of the Hub, and here a file or folder has that name.",
            f"If that is the one you mean, name it: {_flag(part)} {name}",
        )
    here = None if part == "model" and "revision" in given else cached(model, commit)
    if here is None:
        raise UsageError(
            f"{path} was made with the {what} {name} of the Hub, which narcli does not know, "
            "and which is not on this machine in the revision wanted.",
            f"If you trust it, name it: {_flag(part)} {name}"
            + (f" --revision {commit}" if part == "model" and commit else ""),
        )
    return name, here.commit


def _allow(what: str, given: Mapping[str, Any], console: Console) -> None:
    """Ask before a download that a file chose, unless it is allowed, or there will be none."""
    if any(given.get(name) for name in ("yes", "offline", "dry_run")):
        return
    if not console.can_ask:
        raise UsageError(what, "Add --yes to allow the download.")
    console.confirm(what, "Nothing was downloaded.")


def _default(kind: str) -> catalog.Model | None:
    """The default model, where that is a file or folder."""
    try:
        model = resolve.resolve(resolve.default_model(kind), kind)
    except NarError:
        return None
    return model if model.path is not None else None


def warn_of_others(
    path: Path, about: About, common: About, given: Mapping[str, Any], console: Console
) -> None:
    """Say which parts are not those that made the file, unless ones of other names were asked for."""
    for part, what in _PARTS.items():
        then, now = about.get(part), common.get(part)
        if then and now and (then["name"] == now["name"] or not {part, "model"} & set(given)):
            for key in (key for key in _HASHES if key in then and key in now and then[key] != now[key]):
                console.warn(f"The {what} {now['name']} is not the one that made {path}: its {key} differs.")


# --- tokens compared -----------------------------------------------------------------------------


def _recorded(path: Path, about: About) -> list[Recorded]:
    """The grid, the hash and perhaps the tokens of each sample of a file; no more samples than it is of."""
    if "samples" in about:
        samples = about["samples"]
    elif "samples_sha256" in about:
        samples = [{"tokens_sha256": known} for known in about["samples_sha256"]]
    else:
        samples = [about]
    if not samples or not all("tokens_sha256" in sample for sample in samples):
        raise CheckpointError(f"{path} holds no hash of its tokens.", "Leave --verify out.")
    entries, _, num = _subject(path, about)
    if len(samples) > len(entries) * num:
        raise CheckpointError(f"{path} holds hashes of more samples than it is of.", "Get the original file.")
    grid = tuple(about["grid"])
    return [(grid, each["tokens_sha256"], unpack_tokens(path, each, prod(grid))) for each in samples]


def _verify(
    path: Path, recorded: Sequence[Recorded], run: Run, document: dict[str, Any], console: Console
) -> Iterable[bool]:
    """Compare the tokens of each sample with those of the file, and say which cells differ."""
    order = neighbor(tuple(run.common["grid"]))
    if recorded and (more := len(run.documents) - len(recorded)):
        console.warn(f"{path} holds no hash of {more} of its {len(run.documents)} samples: not compared.")
    for index, ((grid, known, before), now) in enumerate(zip(recorded, run.documents, strict=False)):
        sample = run.samples[index]
        where = f"{path}, {sample.entry}, seed {sample.seed}" if len(recorded) > 1 else f"{path}"
        equal = grid == order.sizes and known == now["tokens_sha256"]
        cells: list[int] | None = [] if equal else None
        after = unpack_tokens(path, now, order.cells)
        if not equal and grid == order.sizes and before is not None and after is not None:
            cells = [cell for cell, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        if grid != order.sizes:
            console.warn(f"{where}: its grid is {format_grid(grid)}, and here {format_grid(order.sizes)}.")
        elif equal:
            console.note(f"{where}: the tokens are equal, all {order.cells}.")
        elif cells is None:
            console.warn(f"{where}: the tokens differ; it holds their hash only, so not which.")
        else:
            listed = ", ".join(map(str, cells[:SHOWN])) + (", ..." if len(cells) > SHOWN else "")
            first = min(order.step_of[cell] for cell in cells) + 1
            console.warn(
                f"{where}: {len(cells)} of {order.cells} tokens differ, from step {first} on: cells {listed}."
            )
        if document:
            document["samples"][index] = {**now, "verified": {"equal": equal, "different_cells": cells}}
        yield equal


# --- orders --------------------------------------------------------------------------------------


def _order_again(
    path: Path, about: About, given: Mapping[str, Any], console: Console, reserved: Sequence[Path]
) -> dict[str, Any]:
    """A picture of ``visualize-order`` again."""
    order = neighbor(tuple(about["grid"]))
    name = f"nar-order_{format_grid(order.sizes)}{path.suffix.lower()}"
    output = given.get("output", name)
    if output.endswith("/") or expand(output).is_dir():
        output = f"{output.rstrip('/')}/{name}"
    made = write_order(order, output, overwrite=given["overwrite"], reserved=reserved)
    if not given["as_json"]:
        console.result(made)
    about = {"schema": SCHEMA, "command": "visualize-order"}
    return about | order_document(order, with_cells=False) | {"file": str(made)}
