"""``narcli bench``: speed of a model in several orders, beside the plain algorithm."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..allocator import keep_memory
from ..hub.resolve import resolve
from ..order import NAMES, NAR, parse_name
from ..settings import PLAIN, SamplingSettings
from . import options
from .console import Console
from .options import Dtype, whole_numbers

if TYPE_CHECKING:
    from ..bench.measure import Case


def bench(
    model: options.Model = "nar-b-256",
    tokenizer: options.Tokenizer = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N,...", help="Samples decoded together.")] = "1,8",
    orders: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help=f"Orders to measure: {NAMES}; and plain, NAR's released algorithm.",
            show_default="the model's; of NAR nar,raster,plain",
        ),
    ] = None,
    cfg_scale: options.CfgScale = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs of each; medians are shown.")] = 5,
    device: options.Device = "auto",
    dtype: options.DtypeOption = Dtype.auto,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PATH", help="Also write a chart as PNG.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure loading, tokens, decoding and memory, by order and batch size, beside the machine's limits.

    A released model that is named gets random weights of its size; nothing is downloaded. A built-in
    model, a file or a folder is measured with its own weights, in another order with random ones. The last
    line is one JSON document.
    """
    from ..media.names import resolve_outputs
    from ..media.writers import write_png

    sizes = sorted(set(whole_numbers(batch_sizes, "--batch-sizes", "1,8")))
    chosen = list(dict.fromkeys(name.strip() for name in orders.split(","))) if orders is not None else []
    for name in chosen:
        if name != PLAIN:
            parse_name(name)
    row = resolve(model or "", None)
    given: dict[str, Any] = {} if cfg_scale is None else {"cfg_scale": cfg_scale}
    SamplingSettings(**given)
    path = None
    if output is not None:  # checked before the long measurement
        path = resolve_outputs(output, [{}], default="narcli-bench", overwrite=overwrite).paths[0]
    keep_memory()
    from ..bench import chart, machine, measure, weights
    from ..devices import choose_device, choose_dtype, memory_guard

    console = Console(quiet)
    place = choose_device(device)
    numbers = choose_dtype(dtype.value, place)
    config = weights.sizes_of(row)
    chosen = chosen or ([NAR, "raster", PLAIN] if config.order == NAR else [config.order])
    with (
        memory_guard("Try smaller --batch-sizes, a smaller model or --dtype bfloat16."),
        weights.model_files(row, tokenizer, numbers, chosen) as files,
        console.progress("measuring", len(sizes) * len(chosen) * (repeats + 1)) as advance,
    ):
        limits = machine.measure_limits(place, numbers)
        known = files[chosen[0]].model.model
        settings = SamplingSettings(**{**known.defaults, **given})
        cases = measure.measure(files, sizes, settings, place, numbers, limits, repeats, advance)
    others = [name for name in chosen if row.path and weights.network_for(name, config) != config]
    about_machine = machine.machine(place, numbers, limits)
    document: dict[str, Any] = {
        "model": row.name,
        "kind": known.kind,
        "weights": "random" if row.path is None else "its own",
        "random_orders": others,
        "grid": list(config.grid),
        "sampling": vars(settings),
        "repeats": repeats,
        "machine": about_machine | {"peak_of": machine.forget_peak(place)},
        "cases": [case.document(cases) for case in cases],
    }
    if not as_json:
        show(cases)
    try:
        if path is not None:
            title = f"{row.name}, {about_machine['dtype']}, {about_machine['device']}"
            about = {"command": "bench", "narcli": __version__, "measured": document}
            path = write_png(path, chart.chart(cases, title), about, overwrite=overwrite)
            document["chart"] = str(path)
    finally:  # figures are printed even if the chart cannot be written
        console.json(document) if as_json else console.result(json.dumps(document))


def show(cases: list[Case]) -> None:
    """Print the cases as a table on stdout."""
    from rich.console import Console as Terminal
    from rich.table import Table

    titles = ("order", "batch", "passes", "load s", "step ms", "tokens s", "decode s", "samples/s", "peak GB")
    table = Table(*titles, "vs raster", "vs plain", "of limit", box=None, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "left" if column is table.columns[0] else "right", True
    for case in cases:
        about = case.document(cases)
        table.add_row(
            case.order, str(case.batch_size), str(case.passes), f"{case.load_seconds:.2f}",
            f"{case.step_seconds * 1e3:.1f}", f"{case.tokens_seconds:.3f}", f"{case.decode_seconds:.3f}",
            f"{about['samples_per_second']:.2f}", f"{case.peak_bytes / 1e9:.2f}" if case.peak_bytes else "",
            *(f"{about[key]:.1f}x" if key in about else "" for key in ("times_raster", "times_plain")),
            f"{about['share_of_limit']:.0%}",
        )  # fmt: skip
    Terminal(file=sys.stdout, width=116).print(table)
