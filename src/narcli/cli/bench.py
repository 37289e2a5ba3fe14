"""``narcli bench``: how fast a model samples here, against raster order and the plain algorithm."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..allocator import keep_memory
from ..errors import UsageError
from ..settings import SamplingSettings
from . import options
from .console import Console
from .options import Dtype
from .train import whole_numbers

if TYPE_CHECKING:
    from ..bench import Case


def bench(
    model: options.Model = "nar-b-256",
    tokenizer: options.Tokenizer = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N,...", help="Samples at once.")] = "1,8",
    orders: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Of nar, raster and plain (the released algorithm).")
    ] = "nar,raster,plain",
    cfg_scale: Annotated[float, typer.Option(help="Guidance scale; up to 1 is without guidance.")] = 2.0,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each; medians are shown.")] = 5,
    device: options.Device = "auto",
    dtype: options.DtypeOption = Dtype.auto,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.png", help="Also draw a chart.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure sampling: tokens and decoding, by order and batch size, beside the machine's limits.

    A released model that is named is measured with random weights of its size; nothing is downloaded.
    A built-in model, a file or a folder is measured with its own. The last line is one JSON document.
    """
    settings = SamplingSettings(cfg_scale=cfg_scale)
    sizes = whole_numbers(batch_sizes, "--batch-sizes", "1,8")
    chosen = [name.strip() for name in orders.split(",")]
    if unknown := [name for name in chosen if name not in ("nar", "raster", "plain")]:
        raise UsageError(f"There is no order {unknown[0][:40]!r}.", "Choose of nar, raster and plain.")
    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"--output is {str(output)!r}, expected a name that ends in .png.")
    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists.", "Give another name, or --overwrite.")
    keep_memory()
    from .. import bench
    from ..devices import choose_device, choose_dtype
    from ..writers import write_png

    place = choose_device(device)
    numbers = choose_dtype(dtype.value, place)
    network, decoder = bench.load(model or "nar-b-256", tokenizer, numbers, place)
    console = Console(quiet)
    limits = bench.measure_limits(place, numbers)
    total = len(sizes) * len(chosen) * (repeats + 1)
    with console.progress("measuring", total) as advance:
        cases = bench.measure(network, decoder, chosen, sizes, settings, limits, repeats, advance)
    document = {
        "model": model,
        "cfg_scale": cfg_scale,
        "repeats": repeats,
        "machine": bench.machine(place, numbers, limits),
        "cases": [case.document(cases) for case in cases],
    }
    if output is not None:
        picture = bench.chart(cases, f"{model}, {numbers}, {place}".replace("torch.", ""))
        write_png(output, picture, document, "", overwrite=overwrite)
        document["chart"] = str(output)
    if as_json:
        console.json(document)
        return
    show(cases)
    console.result(json.dumps(document))


def show(cases: list[Case]) -> None:
    """Print the cases as a table on stdout."""
    from rich.console import Console as Terminal
    from rich.table import Table

    table = Table(
        "order", "batch", "passes", "prefill", "step", "tokens", "decode", "images/s", "peak", box=None
    )
    for title in ("vs raster", "vs plain", "of the limit"):
        table.add_column(title)
    for column in table.columns[1:]:
        column.justify = "right"
    for case in cases:
        about = case.document(cases)
        table.add_row(
            case.order, str(case.batch_size), str(case.passes), f"{case.prefill * 1e3:.1f} ms",
            f"{case.step * 1e3:.1f} ms", f"{case.tokens:.3f} s", f"{case.decode:.3f} s",
            f"{about['images_per_s']:.2f}", f"{(case.peak_bytes or 0) / 1e9:.2f} GB",
            *(f"{about[key]:.1f}x" if key in about else "" for key in ("over_raster", "over_plain")),
            f"{about['share_of_limit']:.0%}",
        )  # fmt: skip
    Terminal(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)
