"""Checks before a training: folders, classes, and the networks that it begins with. No torch at import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..checkpoints import config
from ..checkpoints.formats.format import ModelConfig
from ..errors import CheckpointError, UsageError
from ..hub.resolve import lender
from ..order import format_grid, named, parse_name
from ..rules import Rule

if TYPE_CHECKING:
    from ..checkpoints.text_encoder import T5Encoder
    from ..models.blocks import Kind
    from ..models.transformer import NARTransformer
    from ..models.vq import VQTokenizer
    from .data import Pictures


def load_start(
    folder: Path, kinds: Sequence[str], pictures: Pictures, data: Path
) -> tuple[NARTransformer, VQTokenizer, ModelConfig]:
    """Load a model that goes on learning: its transformer in float32, its tokenizer and its config.json.

    Raises:
        CheckpointError: not in narcli's own format, not of one of these kinds, or it cannot be read.
        UsageError: another grid than that of ``pictures``, or a LARP tokenizer.
    """
    from ..checkpoints.load import load_transformer
    from ..models.transformer import NARTransformer
    from .tokens import grid_of

    file = folder / config.CONFIG
    known = config.read_config(file) if file.is_file() else ModelConfig()
    if not known.kind:
        raise CheckpointError(
            f"{folder} is not a model in narcli's own format.",
            "`narcli models convert` makes one of a released model.",
        )
    if known.kind not in kinds:
        raise CheckpointError(
            f"{folder} is of the kind {known.kind!r}, expected {' or '.join(map(repr, kinds))}.",
            "Give another model to start from.",
        )
    model, other = load_transformer(folder, kind=cast("Kind", known.kind)), lender(folder)
    if not isinstance(model, NARTransformer):
        raise CheckpointError(
            f"{folder} is a VAR model, which narcli does not train.",
            "Start from a model of the order nar, raster or par:N.",
        )
    vq = vq_tokenizer(other.path if other and other.path else folder)
    if vq.config.codebook_size != model.config.vocab_size:
        raise CheckpointError(
            f"In {folder} the model draws from {model.config.vocab_size} codes, and the tokenizer has "
            f"{vq.config.codebook_size}.",
            "They do not belong together.",
        )
    if (grid := grid_of(pictures, vq.config)) != model.config.grid:
        raise UsageError(
            f"What is in {str(data)!r} makes a grid of {format_grid(grid)} tokens, and {folder} has one of "
            f"{format_grid(model.config.grid)}.",
            "Prepare it in the size that the model makes, or train a new model.",
        )
    return model, vq, known


def own_encoder(path: Path, width: int | None = None) -> T5Encoder:
    """Load the text encoder that learns with a model, in float32.

    Raises:
        CheckpointError: there is none, or one that makes features of another width.
    """
    import torch

    from ..checkpoints.text_encoder import T5Encoder

    if not path.is_dir():
        raise CheckpointError(
            f"There is no text encoder in {path}.", "Give a folder as transformers saves a T5."
        )
    encoder = T5Encoder.load(path, torch.float32)
    if width is not None and encoder.width != width:
        raise CheckpointError(
            f"The text encoder in {path} makes features of {encoder.width} numbers, and the model takes "
            f"{width}.",
            "They do not belong together.",
        )
    return encoder


def check_order(order: str, grid: tuple[int, ...]) -> None:
    """Refuse an order that models are not trained in, or that a grid does not have.

    Raises:
        UsageError: not ``nar``, ``raster`` or ``par:N``, or as ``order.named``.
    """
    kind, _ = parse_name(order)
    if kind in ("zipar", "var"):
        hint = "Train raster: such a model takes zipar:W." if kind == "zipar" else "Train another order."
        raise UsageError(f"`order` is {order}, expected nar, raster or par:N.", hint)
    named(order, grid)


def check_sizes(rules: Mapping[str, Rule], sizes: Mapping[str, Any]) -> None:
    """Refuse a network that narcli's own format could not hold.

    Raises:
        UsageError: the first size that breaks its rule.
    """
    for name, (expected, holds) in rules.items():
        if not holds(sizes[name]):
            raise UsageError(f"{name} is {sizes[name]}, expected {expected}.")


def count_classes(pictures: Pictures, table: str | None, data: Path) -> int:
    """Count the classes of a new model: those of a class table, or of the labels.

    Raises:
        UsageError: more labels than the table has, or than a model may have.
    """
    from ..classes import load_table

    count = len(load_table(table)) if table else pictures.num_classes
    if count < pictures.num_classes:
        raise UsageError(
            f"The table {table} has {count} classes, the labels {pictures.num_classes}.",
            "Give another table, or none.",
        )
    if not table and count > config.MAX_CLASSES:
        raise UsageError(
            f"The labels of {str(data)!r} reach {count - 1:,}, expected below {config.MAX_CLASSES:,}.",
            "Number the classes from 0.",
        )
    return count


def vq_tokenizer(path: Path) -> VQTokenizer:
    """Load a tokenizer of the kind that is trained here, in float32.

    Raises:
        UsageError: it is a tokenizer of another family.
    """
    from ..checkpoints.load import load_tokenizer
    from ..models.larp import LARPTokenizer
    from ..models.vq import VQTokenizer

    vq = load_tokenizer(path)
    if not isinstance(vq, VQTokenizer):
        family = "a LARP tokenizer" if isinstance(vq, LARPTokenizer) else "a multi-scale tokenizer (VAR's)"
        raise UsageError(f"{path} is {family}.", "Expected one of `narcli train tokenizer`.")
    return vq


def check_output(output: Path, data: Path) -> None:
    """Refuse to write a run among the pictures, whose sample sheets would be pictures next time.

    Raises:
        UsageError: they are one folder, or the run would be in a folder inside that holds pictures.
    """
    if output.resolve() == data.resolve():
        raise UsageError(f"`output` is {output}, the folder of the pictures.", "Give another folder.")
    if data.resolve() not in output.resolve().parents:
        return
    from ..viz.sheets import suffixes

    for _, _, files in os.walk(output):
        if not config.is_run(files) and any(Path(name).suffix.lower() in suffixes() for name in files):
            raise UsageError(f"`output` is {output}, which holds pictures of {data}.", "Give another folder.")


def warn_of_untrained(pictures: Pictures, classes: int, tell: Callable[[str], object]) -> None:
    """Tell which of the classes of a model have no pictures."""
    assert pictures.labels is not None
    there = set(pictures.labels.tolist())
    if absent := [label for label in range(classes) if label not in there]:
        some = ", ".join(map(str, absent[:5])) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        hint = " Labels count from 0." if 0 in absent else ""
        tell(f"Classes without pictures stay untrained: {some}.{hint}")
