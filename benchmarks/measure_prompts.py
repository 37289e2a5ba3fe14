"""Measure how well a model of text draws everyday prompts (docs/builtin-models.md).

    python benchmarks/measure_prompts.py DATA PROMPTS [--model FOLDER] [--sheet FILE]

DATA is what scripts/prepare_emoji_text.py wrote. PROMPTS has a line a prompt: the prompt, a tab, and the code
points of acceptable emoji, of which one without skin tone stands for every tone. The picture nearest to a
sample (mean squared difference of pixels, all 3,391) is taken for what it shows. Prints one JSON document:

- acceptable: share of samples whose nearest picture is acceptable;
- acceptable_and_clean: share of those that are clean, too: 10 log10 of the nearest picture's distance from
  white over its distance from the sample, both mean squares, is at least 9 dB;
- noise: share that is not clean, whatever it shows;
- wrong: what the prompts were taken for.

The sheet shows the samples of the first seed; failures are framed in red.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from measure_emoji import add_sampling, as_pixels, machine, nearest
from PIL import ImageOps

import narcli
from narcli.viz.sheets import contact_sheet

CLEAN = 9.0  # dB
ACROSS = 10  # samples in a row of the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--model", default="emoji-text")
    parser.add_argument("--seeds", type=int, default=3)
    add_sampling(parser)
    given = parser.parse_args()
    began = time.perf_counter()
    with (given.data / "all" / "items.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    known = as_pixels(np.load(given.data / "all" / "images.npy", mmap_mode="r"))
    cases = [line.split("\t") for line in given.prompts.read_text("utf-8").splitlines() if line]
    pipeline = narcli.load(given.model, kind="text", dtype=given.dtype)
    settings = {name: getattr(given, name) for name in ("cfg_scale", "temperature", "top_k", "top_p")}

    results = pipeline.images(prompts=[prompt for prompt, _ in cases], seed=0, num=given.seeds, **settings)
    samples = as_pixels([result.image for result in results])  # the seeds of a prompt one after the other
    places = nearest(samples, known)
    distance = (samples - known[places]).square().mean(1)
    clean = 10 * torch.log10((1 - known[places]).square().mean(1) / distance.clamp_min(1e-10)) >= CLEAN
    wanted = [set(map(key_of, points.split())) for _, points in cases for _ in range(given.seeds)]
    keys = [rows[place]["key"] for place in places.tolist()]
    right = torch.tensor(
        [key in good or untoned(key) in good for key, good in zip(keys, wanted, strict=True)]
    )
    if given.sheet:
        framed = [
            ImageOps.expand(result.image.resize((64, 64)), 2, "white" if good else "red")
            for result, good in zip(results, (right & clean).tolist(), strict=True)
        ]
        first = framed[:: given.seeds]
        contact_sheet(first, rows=-(-len(first) // ACROSS)).save(given.sheet, quality=90)
    wrong = [
        f"{cases[place // given.seeds][0]} -> {rows[int(places[place])]['caption']}"
        for place in (~right).nonzero().flatten().tolist()
    ]
    report = {
        "prompts": len(cases),
        "seeds": given.seeds,
        "acceptable": share(right),
        "acceptable_and_clean": share(right & clean),
        "noise": share(~clean),
        "settings": {name: getattr(pipeline.settings(**settings), name) for name in settings},
        **machine(pipeline, began),
        "wrong": sorted(set(wrong)),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False))


def key_of(code_points: str) -> str:
    """Equal for code points that differ in leading zeros and variation selectors only, as in items.tsv."""
    points = [point.lstrip("0") for point in code_points.lower().split("-")]
    return "-".join(point for point in points if point != "fe0f")


def untoned(key: str) -> str:
    """The key without skin tones."""
    return re.sub("-1f3f[b-f]", "", key)


def share(which: torch.Tensor) -> float:
    """Of what is true."""
    return round(float(which.float().mean()), 4)


if __name__ == "__main__":
    main()
