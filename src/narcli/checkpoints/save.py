"""Writing of models as narcli folders."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CheckpointError, UsageError, first_line
from ..media.atomic import OLD, PART, explain, system_error
from ..media.textfiles import MAX_JSON, expand
from ..models.network import Network, NetworkConfig
from ..models.tokenizer import Tokenizer, TokenizerConfig
from .config import (
    CONFIG,
    FORMAT,
    MODEL,
    TEXT_ENCODER,
    TOKENIZER,
    read_config,
)
from .text_encoder import T5Encoder


def save_model(
    folder: str | Path,
    *,
    transformer: Network | None = None,
    tokenizer: Tokenizer | None = None,
    text_encoder: T5Encoder | None = None,
    classes: str | Sequence[str] | None = None,
    defaults: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a narcli folder, complete or not at all.

    Args:
        folder: the folder to make; an empty one is replaced. Its name becomes the model's.
        transformer: the model; None writes a tokenizer only.
        tokenizer: the model's tokenizer.
        text_encoder: encoder of a model of images from text, if it has its own.
        classes: name of a class table, or the class names.
        defaults: sampling settings (cfg_scale, temperature, top_k, top_p, cfg_interval).
        dtype: of the stored tensors; None keeps each as it is.
        training: texts and numbers that tell on what, and with what, it was trained.
        overwrite: replace an older narcli folder.

    Raises:
        UsageError: neither model nor tokenizer given, or the folder holds other files.
        CheckpointError: a setting or class list that could not be read back.
        NarError: the folder cannot be written, for example on a full disk.
    """
    folder = expand(folder)
    if transformer is None and tokenizer is None:
        raise UsageError("A model folder needs a transformer or a tokenizer.")
    _check_replaceable(folder, overwrite)
    parts: dict[str, dict[str, Tensor]] = {}
    if transformer is not None:
        parts[MODEL] = _storable(transformer, dtype)
    if tokenizer is not None:
        parts[TOKENIZER] = _storable(tokenizer, dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART[0], suffix=PART[1], dir=folder.parent) as made:
            new = Path(made) / "new" / folder.name
            new.mkdir(parents=True)
            _write_config(
                new / CONFIG,
                folder.name,
                transformer.config if transformer is not None else None,
                tokenizer.config if tokenizer is not None else None,
                classes,
                defaults,
                training,
            )
            for file, tensors in parts.items():
                save_file(tensors, new / file)
                (new / file).chmod((new / CONFIG).stat().st_mode)  # it was made for its owner only
            if text_encoder is not None:
                text_encoder.save(new / TEXT_ENCODER, dtype)
                for stored in (new / TEXT_ENCODER).rglob("*"):
                    if stored.is_file():
                        stored.chmod((new / CONFIG).stat().st_mode)
            old = Path(made) / OLD / folder.name
            if folder.exists():
                old.parent.mkdir()
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except (OSError, SafetensorError) as error:
        raise explain(folder, system_error(error) or OSError(first_line(error))) from error
    return folder


def check_saveable(
    folder: Path,
    transformer: NetworkConfig | None = None,
    tokenizer: TokenizerConfig | None = None,
    classes: str | Sequence[str] | None = None,
    defaults: Mapping[str, float] | None = None,
) -> None:
    """Raise before training what ``save_model`` would raise after it; arguments as there, but sizes.

    Raises:
        UsageError, CheckpointError, NarError: as ``save_model`` with ``overwrite``.
    """
    _check_replaceable(folder, overwrite=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART[0], suffix=PART[1], dir=folder.parent) as made:
            _write_config(Path(made) / CONFIG, folder.name, transformer, tokenizer, classes, defaults)
    except OSError as error:
        raise explain(folder, error) from error


def _write_config(
    path: Path,
    name: str,
    transformer: NetworkConfig | None,
    tokenizer: TokenizerConfig | None,
    classes: str | Sequence[str] | None,
    defaults: Mapping[str, float] | None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a ``config.json`` that ``read_config`` reads.

    Raises:
        CheckpointError: a setting or class list that could not be read back.
    """
    parts = {"transformer": transformer, "tokenizer": tokenizer}
    sizes = {part: config for part, config in parts.items() if config is not None}
    said: dict[str, Any] = {"format": FORMAT, "kind": next(iter(sizes.values())).kind, "name": name}
    said |= {part: asdict(config) for part, config in sizes.items()}
    if classes is not None:
        said["classes"] = classes if isinstance(classes, str) else list(classes)
    if defaults:
        said["defaults"] = dict(defaults)
    if training:
        said["training"] = dict(training)
    text = json.dumps(said, indent=1) + "\n"
    if len(text) > MAX_JSON:
        raise CheckpointError(
            f"The class names take {len(text):,} bytes of {CONFIG}, expected at most {MAX_JSON:,}.",
            "Shorten them.",
        )
    path.write_text(text)
    read_config(path)


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    known = {CONFIG, MODEL, TOKENIZER, TEXT_ENCODER}
    ours = folder.is_dir() and {f.name for f in folder.iterdir()} <= known
    if not ours:
        raise UsageError(f"{folder} holds something else.", "Choose a folder that does not exist yet.")
    if not overwrite:
        raise UsageError(f"{folder} holds a model already.", "Choose another folder, or `overwrite` it.")


def _storable(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
