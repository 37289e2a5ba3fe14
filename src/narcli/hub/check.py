"""Check of a model on this machine: its networks are loaded strictly, without memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..checkpoints.config import CONFIG, MODEL, TEXT_ENCODER, read_config
from ..checkpoints.folder import has_own_encoder, has_own_tokenizer
from ..checkpoints.load import kind_of, load_tokenizer, load_transformer
from ..checkpoints.text_encoder import check_encoder
from ..classes import ClassTable, load_table, table_for
from ..errors import CheckpointError
from ..models.blocks import Kind
from .catalog import MODEL_KINDS, MODELS, Model
from .resolve import complete


def check_model(model: Model, path: Path, kind: Kind | None = None) -> None:
    """Load all networks of a local model strictly, without memory.

    Args:
        model: from the catalog.
        path: its weights file or folder.
        kind: required kind of a transformer; None takes any.

    Raises:
        CheckpointError: another kind of file, or tensors that are missing, unexpected or misshapen.
    """
    folder = path if path.is_dir() else path.parent
    if model.kind == "text-encoder":
        return check_encoder(folder)
    if model.kind in MODEL_KINDS:
        transformer = load_transformer(path, kind=kind, grid=model.grid, dtype=None, device="meta")
        if model.repo is None or model.name not in MODELS:  # a released file is identified by its hash
            classes_of(model, path, transformer.config.num_classes)
        if has_own_encoder(path):
            check_encoder(folder / TEXT_ENCODER)
    if model.kind.endswith("-tokenizer") or has_own_tokenizer(path):
        load_tokenizer(folder if has_own_tokenizer(path) else path, dtype=None, device="meta")


def told(model: Model, path: Path) -> Model:
    """Return a local model with the kind that its tensors tell, where no ``config.json`` states it.

    Raises:
        CheckpointError: a file that cannot be used.
    """
    config = (path.parent if path.name == MODEL else path) / CONFIG
    if model.repo is not None or (os.path.lexists(config) and read_config(config).kind):
        return model
    return complete(replace(model, kind=kind_of(path), defaults={}), path)


def classes_of(model: Model, path: Path, count: int) -> ClassTable:
    """Return the class table of a model whose weights have ``count`` classes.

    Raises:
        CheckpointError: its config.json names another number of classes.
    """
    classes = load_table(model.classes) if model.classes else table_for(count, model.kind)
    if len(classes) != count:
        raise CheckpointError(
            f"{path} has {count} classes, and its list of names has {len(classes)}.",
            "The config.json and the weights do not belong together, or are of another narcli.",
        )
    return classes
