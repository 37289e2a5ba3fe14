"""``config.json``: what a model says about itself. No torch.

A narcli folder (format ``narcli.model/1``) holds ``config.json``, ``model.safetensors`` and
``tokenizer.safetensors``; one with a tokenizer only has the kind ``image-tokenizer`` or ``video-tokenizer``:

    {"format": "narcli.model/1", "kind": "image", "name": "emoji",
     "transformer": {"grid": [16, 16], "dim": 384, ...},   fields of TransformerConfig
     "tokenizer": {"ch": 32, "ch_mult": [1, 2, 2, 4], ...},    fields of VQConfig or LARPConfig
     "classes": "emoji",                                    a table of narcli.classes, or a list of names
     "defaults": {"cfg_scale": 2.0, "top_k": 0}}

A model of images from text may bring its encoder, a folder ``text_encoder`` as ``transformers`` saves it.

Beside a released file a ``config.json`` may say what the tensors cannot, with the names of the released
code: ``grid``, ``n_head`` (or ``head_dim``), ``n_layer``, ``dim``, ``cond_tokens`` and so on; keys that are
not known there are ignored. LARP's own ``config.json`` says the sizes of a video tokenizer. Whatever is said
twice, here and by the tensors, has to agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..classes import TABLES
from ..errors import CheckpointError
from ..media.textfiles import open_regular, open_zip, read_json
from ..rules import MAX_CELLS, Rule, _show, check, number, one_of, sizes_of, whole
from ..settings import LARGEST

FORMAT = "narcli.model/1"


CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer.safetensors"


TEXT_ENCODER = "text_encoder"


#: In the folder of a training run: its result, its state, its log, and tokens of its pictures by a digest.
RESULT, STATE, LOG, TOKENS = "model", "state.pt", "log.jsonl", "tokens-{}.npy"


#: In the folder of a training run, the folder in which its text encoder learned first.
ENCODER = "encoder"


KINDS = ("image", "text", "video", "image-tokenizer", "video-tokenizer")


MAX_CLASSES, MAX_CLASS_NAME = 10**5, 200


@dataclass(frozen=True)
class ModelConfig:
    """A validated ``config.json``.

    Args:
        path: the file, for messages; None when there is none.
        kind: one of ``KINDS``, or "" when the file does not say.
        transformer: fields of TransformerConfig that are given (and ``head_dim``, in a released one).
        tokenizer: fields of VQConfig or LARPConfig that are given.
        classes: name of a class table, or the names; None when not given.
        defaults: sampling settings.
        name: what the model is called.
    """

    path: Path | None = None
    kind: str = ""
    transformer: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    classes: str | tuple[str, ...] | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    name: str = ""


TRANSFORMER: Mapping[str, Rule] = {
    "grid": sizes_of(3, 4096, MAX_CELLS),
    "dim": whole(1, 2**16),
    "layers": whole(1, 1000),
    "heads": whole(1, 1024),
    "vocab_size": whole(1, 2**24),
    "ffn_dim": whole(1, 2**20),
    "condition": one_of("class", "text"),
    "num_classes": whole(0, 10**6),
    "condition_tokens": whole(1, 4096),
    "caption_dim": whole(0, 2**16),
    "position": one_of("rotary", "absolute"),
    "extra_tokens": whole(0, 10**6),
}


VQ: Mapping[str, Rule] = {
    "ch": whole(32, 4096),
    "ch_mult": sizes_of(8, 64, 2**16),
    "num_res_blocks": whole(1, 32),
    "z_channels": whole(1, 2**14),
    "codebook_size": whole(1, 2**24),
    "codebook_dim": whole(1, 4096),
    "in_channels": whole(1, 16),
    "patch": whole(1, 16),
    "frames": whole(1, 64),
}


LARP: Mapping[str, Rule] = {
    "bottleneck_token_num": whole(1, MAX_CELLS),
    "codebook_size": whole(1, 2**24),
    "bottleneck_dim": whole(1, 4096),
    "input_size": whole(1, 4096),
    "frame_num": whole(1, 1024),
    **{f"{part}patch_size": whole(1, 64) for part in ("", "temporal_", "decoder_", "decoder_temporal_")},
    "in_channels": whole(1, 16),
    **{f"{part}_hidden_size": whole(1, 2**14) for part in ("encoder", "decoder")},
    **{f"{part}_depth": whole(1, 1000) for part in ("encoder", "decoder")},
    **{f"{part}_num_heads": whole(1, 1024) for part in ("encoder", "decoder")},
    "use_decoder_patch_query_token_type_embed": ("true or false", lambda v: type(v) is bool),
}


#: What else LARP's own config.json says of the network, where it matters: no other variant is known here.
LARP_VARIANT: Mapping[str, Rule] = {
    "transformer_name": one_of("transformer_encoder_parallel"),
    "encoder_name": one_of("none"),
    "decoder_name": one_of("none"),
    "l2_normalized": ("true", lambda v: v is True),
}


DEFAULTS: Mapping[str, Rule] = {
    "cfg_scale": number(0, LARGEST),
    "temperature": number(0, LARGEST),
    "top_k": whole(0, 2**24),
    "top_p": ("a number above 0, at most 1", lambda v: type(v) in (int, float) and 0 < v <= 1),
    "cfg_interval": whole(-1, MAX_CELLS),
}


#: What the released scripts sample with (the paper's numbers: images 2.0 with top-k 0, videos 1.25).
RELEASED_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "image": {"cfg_scale": 4.0, "top_k": 2000},
    "text": {"cfg_scale": 7.5},
    "video": {"cfg_scale": 1.25},
}


#: Keys of a config.json beside a released file, and what they are here.
RELEASED: Mapping[str, str] = {
    "n_layer": "layers",
    "n_head": "heads",
    "cond_tokens": "condition_tokens",
} | {key: key for key in ("grid", "dim", "vocab_size", "num_classes", "caption_dim")}


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
            f"{path}: format is {_show(said['format'])}, expected {FORMAT!r}.", "A newer narcli may read it."
        )
    known = {"format", "kind", "name", "transformer", "tokenizer", "classes", "defaults"}
    _refuse_unknown(path, "", said, known)
    check(path, "", {"kind": one_of(*KINDS)}, {"kind": said.get("kind")})
    name, classes = said.get("name", ""), said.get("classes")
    check(path, "", {"name": _NAME}, {"name": name})
    if classes is not None:
        check(path, "", {"classes": _CLASSES}, {"classes": classes})
    larp = isinstance(said.get("tokenizer"), dict) and "bottleneck_token_num" in said["tokenizer"]
    parts = {"transformer": TRANSFORMER, "tokenizer": LARP if larp else VQ, "defaults": DEFAULTS}
    for part, rules in parts.items():
        check(path, "", {part: ("an object", lambda v: isinstance(v, dict))}, {part: said.get(part, {})})
        _refuse_unknown(path, f"{part}.", said.get(part, {}), rules)
        check(path, f"{part}.", rules, said.get(part, {}))
    return ModelConfig(
        path,
        said["kind"],
        _tuples(said.get("transformer", {})),
        _tuples(said.get("tokenizer", {})),
        tuple(classes) if isinstance(classes, list) else classes,
        said.get("defaults", {}),
        name,
    )


_NAME: Rule = (
    "a printable text of at most 200 characters",
    lambda v: isinstance(v, str) and len(v) <= 200 and v.isprintable(),
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
    if "bottleneck" in given:
        return _larp(path, given)
    check(path, "", {key: TRANSFORMER[field] for key, field in RELEASED.items()}, given)
    check(path, "", {"head_dim": whole(1, 2**16), **VQ}, given)
    transformer = {field: given[key] for key, field in RELEASED.items() if key in given}
    transformer |= {"head_dim": given["head_dim"]} if "head_dim" in given else {}
    return ModelConfig(path, "", _tuples(transformer), _tuples({k: given[k] for k in VQ if k in given}))


def _larp(path: Path, given: dict[str, Any]) -> ModelConfig:
    inner = given["bottleneck"]
    for key in ("args", "regularizer", "args"):  # one inside the other
        part = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(part, dict):
            raise CheckpointError(f"{path}: the bottleneck has no {key}.", "It is not LARP's config.json.")
        given |= {name: value for name, value in part.items() if name in {*LARP, *LARP_VARIANT}}
        inner = part
    check(path, "", {**LARP, **LARP_VARIANT}, given)
    return ModelConfig(path, "", tokenizer={key: given[key] for key in LARP if key in given})


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
    """Whether a folder with files of these names is that of a training run."""
    return STATE in names or LOG in names or any(fnmatch(name, TOKENS.format("*")) for name in names)


def _state_in(path: Path) -> str:
    """What a file keeps the state of, by its first keys: a training run, an optimiser, or "" for nothing."""
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
    """Which files of a folder or repository may be the model: narcli's, or all weights but a tokenizer's."""
    found = [name for name in names if name.lower().endswith((".safetensors", ".pt", ".pth"))]
    return [MODEL] if MODEL in found else sorted(name for name in found if name != TOKENIZER)


def agree(config: ModelConfig, stated: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Check what a config.json says against what the tensors say.

    Raises:
        CheckpointError: they differ.
    """
    for key, value in stated.items():
        if key in found and found[key] != value:
            aliases = {field: alias for alias, field in RELEASED.items()} if not config.kind else {}
            said = f"{aliases.get(key, key)} is {_show(value)}"
            raise CheckpointError(
                f"{config.path}: {said}, but the tensors say {_show(found[key])}.",
                "The two files do not belong together.",
            )


def _refuse_unknown(path: Path, prefix: str, values: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := [key for key in values if key not in known]:
        raise CheckpointError(
            f"{path}: {prefix}{_show(unknown[0])[1:-1]} is not known here.", "A newer narcli may read it."
        )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
