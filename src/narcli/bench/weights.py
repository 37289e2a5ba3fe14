"""Random weights of a model's size, written to files and loaded as a user's are."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from ..models.blocks import RMSNorm, TransformerConfig
from ..models.network import Network, NetworkConfig
from ..models.tokenizer import Tokenizer
from ..order import NAR, named, parse_name
from ..settings import PLAIN


@contextmanager
def model_files(
    row: Model, tokenizer: str | None, dtype: torch.dtype, orders: Sequence[str] = ()
) -> Iterator[dict[str, Files]]:
    """Context with the files of a model for each order that it is measured in.

    Random weights of the same sizes stand in where the model is not on this machine, or has another order.

    Args:
        row: a released model, or one with a path. A released file has the kind that its tensors tell.
        tokenizer: tokenizer of a file; None is the folder's own.
        dtype: of random weights.
        orders: names of orders, and ``plain``; none is the model's own.

    Raises:
        UsageError: a model whose size is not known, an order that it cannot have, or no tokenizer.
        CheckpointError: a file that cannot be used, or a tokenizer that does not fit the model.
        NarError: the disk cannot hold the random weights.
    """
    if row.path is None and tokenizer is not None:
        raise UsageError(
            f"`tokenizer` is given, and {row.name} is measured with random weights.", "Leave it out."
        )
    sizes = sizes_of(row)
    networks = {order: network_for(order, sizes) for order in orders or (sizes.order,)}
    made: dict[NetworkConfig, Files] = {}
    beside = None
    if row.path is not None:
        source = choose(sizes.kind, row.path, tokenizer)
        model = fetch(source.model, offline=True)
        beside = fetch(source.tokenizer, offline=True) if source.tokenizer else model
        made[sizes] = Files(model, beside)
    missing = [config for config in dict.fromkeys(networks.values()) if config not in made]
    with tempfile.TemporaryDirectory(prefix="narcli-bench-", ignore_cleanup_errors=True) as place:
        decoder: Tokenizer | None = None
        if beside is None:
            of_codes = released_tokenizer(MODELS[row.tokenizer or ""])
            decoder = network_of(of_codes)(of_codes).to(dtype)
        _check_room(row, dtype, missing, decoder, place)
        for config in missing:
            folder = save_model(
                Path(place) / (row.name + f"-{config.order.replace(':', '-')}" * (config != sizes)),
                transformer=random_network(config, dtype),
                tokenizer=None if beside else decoder,
                defaults=row.defaults,
            )
            model = Fetched(resolve(folder, sizes.kind), folder)
            beside = beside or model
            made[config] = Files(model, beside)
        yield {order: made[config] for order, config in networks.items()}


def sizes_of(row: Model) -> NetworkConfig:
    """Return the sizes of a model, from its file or from its row.

    Raises:
        UsageError: the row is not one of a released transformer.
        CheckpointError: a file that cannot be used.
    """
    if row.path is not None:
        return transformer_config(row.path, grid=row.grid)
    config = released_config(row)
    if config is None:
        raise UsageError(
            f"The size of {row.name} is not known.", "Give a file or a folder, or a released model."
        )
    return config


def network_for(order: str, sizes: NetworkConfig) -> NetworkConfig:
    """Return the sizes of the network that an order is measured with: trunk and width are the model's.

    Raises:
        UsageError: an unknown order, or one that the grid or the condition does not have.
    """
    if order == PLAIN:
        if sizes.order != NAR:
            raise UsageError(
                f"The order {PLAIN} is NAR's released algorithm, and this model decodes in {sizes.order}.",
                f"Measure {sizes.order}.",
            )
        return sizes
    kind, _ = parse_name(order)
    own = "raster" if kind == "zipar" else order
    if own == sizes.order or (kind == "var" and sizes.order.startswith("var")):
        sizes.decoded_in(order)
        return sizes
    if kind == "var" or not isinstance(sizes, TransformerConfig) or sizes.condition == "frames":
        raise UsageError(
            f"The order {order} cannot run a model of the order {sizes.order}.", f"Measure {sizes.order}."
        )
    named(order, sizes.grid)
    return replace(sizes, order=own)


def _check_room(
    row: Model,
    dtype: torch.dtype,
    configs: Sequence[NetworkConfig],
    decoder: nn.Module | None,
    place: str,
) -> None:
    """Raise NarError unless the disk of ``place`` holds random weights of all networks."""
    parts: list[nn.Module] = [build(config).to(dtype) for config in configs]
    parts += [decoder] if decoder is not None else []
    needed = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise NarError(
            f"Random weights of {row.name} take {needed / 1e9:,.2f} GB in {dtype_name(dtype)}, "
            f"and the disk of {Path(place).parent} has {free / 1e9:,.2f} GB free.",
            "Free some space, set TMPDIR to a folder on another disk, or measure a smaller model.",
        )


def random_network(config: NetworkConfig, dtype: torch.dtype) -> Network:
    """Build a transformer of these sizes with random weights."""
    model: Network = build(config).to(dtype).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
    return model.eval()
