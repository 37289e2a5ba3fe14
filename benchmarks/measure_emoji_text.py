"""Measure the built-in model `emoji-text` (docs/builtin-models.md).

    python benchmarks/measure_emoji_text.py DATA [--sheet docs/images/emoji-text-heldout.webp]

DATA is what scripts/prepare_emoji_text.py wrote. A picture is drawn of each of the 150 combinations that
were set aside, of as many of the same kinds that were not, and of 200 single things, which have no attributes
and are no flags or keycaps; by default with the model's settings and seed 0. The picture nearest to it (mean
squared difference of pixels, all 3,391) is taken for what it shows. Prints one JSON document, for the groups,
and for what the tokenizer makes of the pictures set aside, as a bound:

- subject, attribute: share of pictures whose nearest one has the subject, or gender, skin tones and colour;
- exact: share of pictures whose nearest one is the very combination;
- wrong: what was taken for what.

The sheet shows pairs, the picture drawn and the one asked for, of the combinations set aside; failures are
framed in red.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure_emoji import add_sampling, as_pixels, machine, nearest
from PIL import Image, ImageOps

import narcli
from narcli.pipeline import Pipeline
from narcli.training.data import to_unit
from narcli.viz.sheets import contact_sheet

Row = dict[str, str]
ACROSS = 10  # pairs in a row of the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="emoji-text")
    parser.add_argument("--seed", type=int, default=0)
    add_sampling(parser)
    given = parser.parse_args()
    began = time.perf_counter()
    with (given.data / "all" / "items.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    images = np.load(given.data / "all" / "images.npy", mmap_mode="r")
    pipeline = narcli.load(given.model, kind="text", dtype=given.dtype)
    settings = {name: getattr(given, name) for name in ("cfg_scale", "temperature", "top_k", "top_p")}

    known = as_pixels(images)
    heldout = [row for row in rows if row["held_out"] == "1"]
    place = {row["key"]: index for index, row in enumerate(rows)}
    originals = to_unit(torch.from_numpy(images[[place[row["key"]] for row in heldout]]))
    codes = [
        pipeline.tokenizer.encode(part) for part in originals.to(pipeline.device, dtype_of(pipeline)).split(8)
    ]
    again = [clip[0] for clip in pipeline.decode(torch.cat(codes))]
    report: dict[str, object] = {
        "tokenizer": compare(heldout, [rows[index] for index in nearest(as_pixels(again), known).tolist()])
    }
    groups = {"held_out": heldout, "seen": alike(rows, heldout), "single": singles(rows)}
    for name, wanted in groups.items():
        results = pipeline.images(prompts=[row["caption"] for row in wanted], seed=given.seed, **settings)
        found = [rows[index] for index in nearest(as_pixels([r.image for r in results]), known).tolist()]
        report[name] = compare(wanted, found)
        if name == "held_out" and given.sheet:
            targets = [Image.fromarray(images[place[row["key"]]]) for row in wanted]
            right = [want["key"] == got["key"] for want, got in zip(wanted, found, strict=True)]
            sheet = draw_sheet([r.image for r in results], targets, right)
            sheet.save(given.sheet, quality=90)
    report |= {
        "settings": {name: getattr(pipeline.settings(**settings), name) for name in settings},
        "seed": given.seed,
        **machine(pipeline, began),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False))


def alike(rows: Sequence[Row], heldout: Sequence[Row]) -> list[Row]:
    """Rows that were seen in training: as many of each kind as were set aside, spread over the table."""
    chosen: list[Row] = []
    for kind, number in Counter(row["kind"] for row in heldout).items():
        chosen += spread([row for row in rows if row["kind"] == kind and row["held_out"] == "0"], number)
    return chosen


def singles(rows: Sequence[Row]) -> list[Row]:
    """Things without attributes, which were all seen; no flags and keycaps, of which there are many."""
    flat = ("flag", "keycap")
    return spread([row for row in rows if not row["attributes"] and not row["caption"].startswith(flat)], 200)


def spread(rows: Sequence[Row], number: int) -> list[Row]:
    """At most so many, evenly spread over the table."""
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, min(number, len(rows))).round()]


def compare(wanted: Sequence[Row], found: Sequence[Row]) -> dict[str, object]:
    """Shares that agree in subject, in attributes and exactly."""
    pairs = list(zip(wanted, found, strict=True))
    shares = {
        name: round(sum(want[column] == got[column] for want, got in pairs) / len(pairs), 4)
        for name, column in (("subject", "subject"), ("attribute", "attributes"), ("exact", "key"))
    }
    wrong = [f"{want['caption']} -> {got['caption']}" for want, got in pairs if want["key"] != got["key"]]
    return {"pictures": len(pairs), **shares, "wrong": wrong}


def draw_sheet(
    drawn: Sequence[Image.Image], targets: Sequence[Image.Image], right: Sequence[bool]
) -> Image.Image:
    """What was drawn, and beside it what was asked for."""
    pairs = []
    for one, other, good in zip(drawn, targets, right, strict=True):
        pair = Image.new("RGB", (2 * one.width, one.height))
        pair.paste(one, (0, 0))
        pair.paste(other, (one.width, 0))
        pairs.append(ImageOps.expand(pair.resize((128, 64)), 2, "white" if good else "red"))
    return contact_sheet(pairs, rows=len(pairs) // ACROSS)


def dtype_of(pipeline: Pipeline) -> torch.dtype:
    return pipeline.model.token_embedding.weight.dtype


if __name__ == "__main__":
    main()
