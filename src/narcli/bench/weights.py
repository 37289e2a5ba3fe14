"""Random weights of a model's size, written to files and loaded as a user's are."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..checkpoints.formats.families import network_of
from ..checkpoints.load import build, transformer_config
from ..checkpoints.save import save_model
from ..devices import dtype_name
from ..errors import NarError, UsageError
from ..hub.catalog import MODELS, Model
from ..hub.locate import fetch
from ..hub.resolve import resolve
from ..hub.selection import Fetched
from ..hub.sizes import released_config, released_tokenizer
from ..hub.sources import Files, choose
from ..models.blocks import RMSNorm, TextCondition
from ..models.network import Network
from ..models.tokenizer import Tokenizer
from ..models.transformer import NARTransformer


@contextmanager
def model_files(row: Model, tokenizer: str | None, dtype: torch.dtype) -> Iterator[Files]:
    """Context with the files of a model; random weights stand in for one that is not on this machine.

    Args:
        row: a released model, or one with a path. A released file has the kind that its tensors tell.
        tokenizer: tokenizer of a file; None is the folder's own.
        dtype: of random weights.

    Raises:
        UsageError: a model whose size is not known, or no tokenizer.
        CheckpointError: a file that cannot be used, or a tokenizer that does not fit the model.
        NarError: the disk cannot hold the random weights.
    """
    if row.path is not None:
        kind = transformer_config(row.path, grid=row.grid).kind
        source = choose(kind, row.path, tokenizer)
        model = fetch(source.model, offline=True)
        yield Files(model, fetch(source.tokenizer, offline=True) if source.tokenizer else model)
        return
    if tokenizer is not None:
        raise UsageError(
            f"`tokenizer` is given, and {row.name} is measured with random weights.", "Leave it out."
        )
    with tempfile.TemporaryDirectory(prefix="narcli-bench-", ignore_cleanup_errors=True) as place:
        network = random_model(row, dtype, torch.device("meta"))
        sizes = released_tokenizer(MODELS[row.tokenizer or ""])
        decoder: Tokenizer = network_of(sizes)(sizes).to(dtype)
        parts: list[nn.Module] = [network, decoder]
        needed = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
        free = shutil.disk_usage(place).free
        if needed > free:
            numbers = dtype_name(dtype)
            raise NarError(
                f"Random weights of {row.name} take {needed / 1e9:,.2f} GB in {numbers}, "
                f"and the disk of {Path(place).parent} has {free / 1e9:,.2f} GB free.",
                "Free some space, set TMPDIR to a folder on another disk, or measure a smaller model.",
            )
        network = random_model(row, dtype, torch.device("cpu"))
        folder = save_model(
            Path(place) / row.name, transformer=network, tokenizer=decoder, defaults=row.defaults
        )
        del network, decoder
        model = Fetched(resolve(folder, row.kind), folder)
        yield Files(model, model)


def measurable(network: Network) -> NARTransformer:
    """Return a network that the bench measures unchanged.

    Raises:
        UsageError: a network of another family than NAR's.
    """
    if not isinstance(network, NARTransformer):
        raise UsageError("`narcli bench` does not measure models of scales (VAR).", "Name a NAR model.")
    return network


def random_model(row: Model, dtype: torch.dtype, device: torch.device) -> NARTransformer:
    """Build a transformer of a released model's size with random weights.

    Raises:
        UsageError: the row is not one of a released transformer.
    """
    config = released_config(row)
    if config is None:
        raise UsageError(
            f"The size of {row.name} is not known.", "Give a file or a folder, or a released model."
        )
    model = measurable(build(config).to(dtype).to_empty(device=device))
    model.init_weights()
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, TextCondition):
            nn.init.normal_(module.uncond_embedding)
    for head in model.ordered_heads:
        nn.init.normal_(head.output.weight, std=0.02)
    return model.eval()
