"""``config.json``: what a model says about itself. No torch.

A narcli folder (format ``narcli.model/1``) holds ``config.json``, ``model.safetensors`` and
``tokenizer.safetensors``; one with a tokenizer only has the kind ``image-tokenizer`` or ``video-tokenizer``:

    {"format": "narcli.model/1", "kind": "image", "name": "emoji",
     "transformer": {"grid": [16, 16], "dim": 384, ...},      fields of the sizes of its network
     "tokenizer": {"ch": 32, "ch_mult": [1, 2, 2, 4], ...},   likewise
     "classes": "emoji",                                      a table of narcli.classes, or a list of names
     "defaults": {"cfg_scale": 2.0, "top_k": 0},
     "training": {"data": "3f0c...", "steps": 500, ...}}      data and settings, of a model trained here

A model of images from text may bring its encoder, a folder ``text_encoder`` as ``transformers`` saves it.

Beside a released file a ``config.json`` may state what the tensors do not tell, with the names of the
released code; keys that are not known are ignored. ``formats`` says which keys each family has. What both
the ``config.json`` and the tensors state has to agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..classes import TABLES
from ..errors import CheckpointError
from ..media.textfiles import open_regular, open_zip, read_json
from ..rules import MAX_CELLS, Rule, check, number, one_of, show, whole
from ..settings import LARGEST
from .formats.families import readers
from .formats.format import PARTS, ModelConfig

FORMAT = "narcli.model/1"
CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer.safetensors"
TEXT_ENCODER, NAMES = "text_encoder", "names"
NAMES_LIST, NAMES_VECTORS = "names.txt", "names.safetensors"  # in ``NAMES``
LONGEST_NAME = 500  # characters of a name that prompts are read as
#: In the folder of a training run: its result, its state, its log, and tokens of its pictures by a digest.
RESULT, STATE, LOG, TOKENS = "model", "state.pt", "log.jsonl", "tokens-{}.npy"
#: In the folder of a training run, the folder in which its text encoder learned first.
ENCODER = "encoder"
KINDS = ("image", "text", "video", "frames", "image-tokenizer", "video-tokenizer")
MAX_CLASSES, MAX_CLASS_NAME = 10**5, 200

DEFAULTS: Mapping[str, Rule] = {
    "cfg_scale": number(0, LARGEST),
    "temperature": number(0, LARGEST),
    "top_k": whole(0, 2**24),
    "top_p": ("a number above 0, at most 1", lambda v: type(v) in (int, float) and 0 < v <= 1),
    "cfg_interval": whole(-1, MAX_CELLS),
}


def read_config(path: Path) -> ModelConfig:
    """Read and check a ``config.json``, narcli's or one beside a released file.

    Raises:
        CheckpointError: unreadable, not JSON, or a value that is not what it should be.
    """
    said = read_json(path)
    return _released(path, said) if "format" not in said else _own(path, said)


def _own(path: Path, said: dict[str, Any]) -> ModelConfig:
    if said["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format is {show(said['format'])}, expected {FORMAT!r}.", "A newer narcli may read it."
        )
    known = {"format", "kind", "name", "transformer", "tokenizer", "classes", "defaults", "training"}
    _refuse_unknown(path, "", said, known)
    check(path, "", {"kind": one_of(*KINDS)}, {"kind": said.get("kind")})
    name, classes = said.get("name", ""), said.get("classes")
    check(path, "", {"name": _NAME}, {"name": name})
    if classes is not None:
        check(path, "", {"classes": _CLASSES}, {"classes": classes})
    check(path, "", {"training": _TRAINING}, {"training": said.get("training", {})})
    for section in (*PARTS, "defaults"):
        fields = said.get(section, {})
        check(path, "", {section: ("an object", lambda v: isinstance(v, dict))}, {section: fields})
        rules = DEFAULTS if section == "defaults" else readers(fields, section)[0].rules
        _refuse_unknown(path, f"{section}.", fields, rules)
        check(path, f"{section}.", rules, fields)
    return ModelConfig(
        path,
        said["kind"],
        _tuples(said.get("transformer", {})),
        _tuples(said.get("tokenizer", {})),
        tuple(classes) if isinstance(classes, list) else classes,
        said.get("defaults", {}),
        name,
        said.get("training", {}),
    )


_NAME: Rule = (
    "a printable text of at most 200 characters",
    lambda v: isinstance(v, str) and len(v) <= 200 and v.isprintable(),
)


_TRAINING: Rule = (
    "an object of at most 50 texts and numbers",
    lambda v: (
        isinstance(v, dict)
        and len(v) <= 50
        and all(isinstance(each, str | int | float | None) and len(str(each)) <= 200 for each in v.values())
    ),
)


_CLASSES: Rule = (
    f"a list of printable names or one of {', '.join(TABLES)}",
    lambda v: (
        v in TABLES
        if isinstance(v, str)
        else isinstance(v, list)
        and 0 < len(v) <= MAX_CLASSES
        and all(isinstance(n, str) and 0 < len(n) < MAX_CLASS_NAME and n.isprintable() for n in v)
    ),
)


def _released(path: Path, said: dict[str, Any]) -> ModelConfig:
    given = {key: value for key, value in said.items() if value is not None}
    parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for format in readers(given):
        parts[format.part] |= _tuples(format.read_config(path, given))
    return ModelConfig(path, "", parts["transformer"], parts["tokenizer"])


def result_of(path: Path) -> Path:
    """Find the model that a path means: ``model`` in the folder of a training run, else the path itself.

    Raises:
        CheckpointError: a run without a result yet, a part of a run, or the state of a training.
    """
    if path.is_file():
        if kind := _state_in(path):
            result = path.parent / RESULT
            raise CheckpointError(
                f"{path} is the state of {kind}, not a model.",
                f"Give {result}, its result."
                if (result / CONFIG).is_file()
                else "Give the result of the training.",
            )
        return path
    try:
        names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    except OSError:  # what opens it says why
        return path
    if CONFIG in names or any(name != STATE for name in weights_in(names)):
        return path
    if (path / RESULT / CONFIG).is_file():
        return path / RESULT
    if is_run(names):
        above = {file.name for file in path.parent.iterdir()} if path.name == ENCODER else set()
        run = path.parent if is_run(above) else path
        if (run / RESULT / CONFIG).is_file():
            raise CheckpointError(
                f"{path} is a part of the training run {run}.", f"Give {run / RESULT}, its result."
            )
        raise CheckpointError(
            f"{path} is the folder of a training run that has no result yet.",
            f"Give the same `narcli train` command again: it goes on, and writes {run / RESULT}.",
        )
    return path


def is_run(names: Collection[str]) -> bool:
    """Tell whether a folder with files of these names is that of a training run."""
    return STATE in names or LOG in names or any(fnmatch(name, TOKENS.format("*")) for name in names)


def _state_in(path: Path) -> str:
    """Name the owner of a state file by its first keys: a training run, an optimiser, or "" for nothing."""
    try:
        with open_regular(path) as file, open_zip(file) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if entry.compress_type != 0:  # PyTorch stores; unpacking may take any memory
                return ""
            with archive.open(entry) as pickled:
                content = pickled.read(2**24)
    except Exception:  # a damaged archive raises anything; what opens it next says what is wrong
        return ""
    start = content[:64]
    if _key("step") in start and _key("about") in start:
        return "a training run"
    return "an optimiser" if _key("state") in start and _key("param_groups") in content else ""


def _key(name: str) -> bytes:
    """A short text as it is in a pickle of protocol 2."""
    return b"X" + len(name).to_bytes(4, "little") + name.encode()


def weights_in(names: Iterable[str]) -> list[str]:
    """Select the files of a folder or repository that may be the model: narcli's, or no tokenizer's."""
    found = [name for name in names if name.lower().endswith((".safetensors", ".pt", ".pth"))]
    return [MODEL] if MODEL in found else sorted(name for name in found if name != TOKENIZER)


def _refuse_unknown(path: Path, prefix: str, values: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := [key for key in values if key not in known]:
        raise CheckpointError(
            f"{path}: {prefix}{show(unknown[0])[1:-1]} is not known here.", "A newer narcli may read it."
        )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
