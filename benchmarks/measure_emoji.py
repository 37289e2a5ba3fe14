"""Measure the built-in model `emoji` (docs/builtin-models.md).

    python benchmarks/measure_emoji.py DATA [--model FOLDER] [--sheet docs/images/emoji-64.png]

DATA is what scripts/prepare_emoji.py wrote. Prints one JSON document:

- tokenizer: mean over the pictures of each one's PSNR, on one frame of each animation kept out of training,
  in float32;
- nearest: for 200 classes spread over the table x 4 seeds at the default settings, the share of samples
  whose nearest training picture (mean squared difference of pixels, all classes) has the sample's class;
- variety: the share of these classes whose 4 samples are pairwise different, and their mean distance.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import narcli
from narcli.models.vq import VQTokenizer
from narcli.pipeline import Pipeline
from narcli.training.data import Pictures, load_pictures
from narcli.training.tokenizer import psnr
from narcli.viz.sheets import contact_sheet


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling that every one of these scripts takes."""
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--dtype", default="auto")
    for name in ("cfg_scale", "temperature", "top_p"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    parser.add_argument("--top-k", type=int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    add_sampling(parser)
    given = parser.parse_args()
    began = time.perf_counter()
    pipeline = narcli.load(given.model, dtype=given.dtype)
    settings = {name: getattr(given, name) for name in ("cfg_scale", "temperature", "top_k", "top_p")}

    plain = narcli.load(given.model, dtype="float32").tokenizer
    heldout = tokenizer_figures(plain, load_pictures(given.data / "heldout"))

    training = load_pictures(given.data / "emoji")
    assert training.labels is not None
    labels = np.unique(np.linspace(0, len(pipeline.classes) - 1, given.classes).round().astype(int))
    names = [pipeline.classes.entry(int(label)).name for label in labels]
    results = pipeline.images(names, seed=0, num=given.samples, **settings)
    found, wrong = [], []
    pixels = as_pixels([result.image for result in results])
    taken_for = training.labels[nearest(pixels, as_pixels(training.images)).numpy()]
    for result, label in zip(results, taken_for.tolist(), strict=True):
        found.append(label == result.label)
        if not found[-1]:
            wrong.append(f"{result.entry.name} -> {pipeline.classes.entry(label).name}")
    groups = pixels.view(len(labels), given.samples, -1)
    pairs = [(i, j) for i in range(given.samples) for j in range(i)]
    distances = torch.stack([(groups[:, i] - groups[:, j]).abs().mean(1) for i, j in pairs], 1)
    if given.sheet:
        picks = np.linspace(0, len(results) - 1, 64).round().astype(int)
        contact_sheet([results[i].image for i in picks], rows=8).save(given.sheet, optimize=True)
    report = {
        "tokenizer": heldout,
        "nearest": {
            "samples": len(found),
            "share_of_own_class": round(sum(found) / len(found), 4),
            "wrong": sorted(set(wrong)),
        },
        "variety": {
            "share_of_classes_all_different": round(float((distances.amin(1) > 0).float().mean()), 4),
            "mean_absolute_difference": round(float(distances.mean()), 4),
        },
        "settings": {name: getattr(pipeline.settings(**settings), name) for name in settings},
        **machine(pipeline, began),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False))


def as_pixels(images: Iterable[Any]) -> torch.Tensor:
    """Pictures of one size -> float32 (N, pixels) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).flatten() for image in images]).float() / 255


def nearest(samples: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Which of the known pictures (K, pixels) is nearest to each sample (N, pixels), by squares: (N,)."""
    squares = known.square().sum(1)
    return torch.stack([(squares - 2 * (known @ sample)).argmin() for sample in samples])


def tokenizer_figures(tokenizer: VQTokenizer, pictures: Pictures) -> dict[str, float]:
    """PSNR of a float32 tokenizer on pictures or clips."""
    values = psnr(tokenizer, pictures)
    return {
        "clips" if pictures.frames else "pictures": len(values),
        "psnr_db_mean": round(float(values.mean()), 2),
        "psnr_db_of_mean_error": round(float(-10 * (10 ** (-values / 10)).mean().log10()), 2),
        "psnr_db_5th_percentile": round(float(values.quantile(0.05)), 2),
    }


def machine(pipeline: Pipeline, began: float) -> dict[str, object]:
    """What it was measured with, and how long it took."""
    return {
        "dtype": str(pipeline.model.token_embedding.weight.dtype),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    main()
