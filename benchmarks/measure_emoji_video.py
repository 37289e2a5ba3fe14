"""Measure the built-in model `emoji-video` (docs/builtin-models.md).

    python benchmarks/measure_emoji_video.py DATA [--model FOLDER] [--sheet docs/images/emoji-video.png]

DATA is what scripts/prepare_emoji.py wrote. Prints one JSON document:

- tokenizer: mean over the clips of each one's PSNR, on the frames half way between those of training, and on
  those of training themselves, in float32;
- nearest: for every class and the seeds from 0, the share of samples whose nearest training clip is of their
  class (mean squared difference of all pixels, all classes, from whichever frame on: the clips are loops);
- motion: the mean absolute change from frame to frame, divided by that of the class's training clip (from the
  frame on that is nearest to the sample): the share of samples between 0.6 and 1.6, and percentiles;
- tokens: the share of a sample's tokens that are those of its class's clip, from the nearest of the four
  frames on that it was trained from: the mean over the samples and percentiles. The first token, which says
  where the loop begins, is left out;
- starts: the mean number of different nearest frames that the samples of a class begin from.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure_emoji import machine, tokenizer_figures
from PIL import Image
from torch import Tensor

import narcli
from narcli.training.data import load_pictures
from narcli.viz.sheets import contact_sheet

LOW, HIGH = 0.6, 1.6
STARTS = 4  # of the loops in training
ROWS = 8  # classes of the contact sheet
SIDE = 64  # pixels of its frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="emoji-video")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cfg-scale", type=float)
    parser.add_argument("--temperature", type=float)
    given = parser.parse_args()
    began = time.perf_counter()
    pipeline = narcli.load(given.model, kind="video", dtype=given.dtype)
    settings = {"cfg_scale": given.cfg_scale, "temperature": given.temperature}

    training = load_pictures(given.data / "emoji-video")
    assert training.labels is not None
    plain = narcli.load(given.model, kind="video", dtype="float32").tokenizer
    heldout = tokenizer_figures(plain, load_pictures(given.data / "clips-heldout"))

    names = [pipeline.classes.entry(label).name for label in range(len(pipeline.classes))]
    results = pipeline.videos(names, seed=0, num=given.samples, **settings)
    samples = torch.stack([as_tensor(result.frames) for result in results])  # (S, frames, pixels)
    clips = torch.from_numpy(np.array(training.images)).flatten(2).float() / 255  # (C, frames, pixels)
    distances = loop_distances(samples, clips)  # (S, C, starts)
    found, wrong, ratios = [], [], []
    for index, (result, sample) in enumerate(zip(results, samples, strict=True)):
        nearest = int(distances[index].amin(1).argmin())
        found.append(int(training.labels[nearest]) == result.label)
        if not found[-1]:
            wrong.append(
                f"{result.entry.name} -> {pipeline.classes.entry(int(training.labels[nearest])).name}"
            )
        own = int(np.flatnonzero(training.labels == result.label)[0])
        start = int(distances[index, own].argmin())
        ratios.append(change(sample) / change(clips[own].roll(-start, 0)))
    ratio = torch.tensor(ratios)
    known = training.loops(STARTS)
    codes = torch.cat([plain.encode(known.batch(part)) for part in np.split(np.arange(len(known)), STARTS)])
    alike = torch.stack(  # (S, STARTS)
        [(codes[known.item_labels == r.label] == r.tokens)[:, 1:].float().mean(1) for r in results]
    )
    equal, begins = alike.max(1)
    if given.sheet:
        rows = np.linspace(0, len(names) - 1, ROWS).round().astype(int) * given.samples
        frames = [
            frame.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for r in rows for frame in results[r].frames
        ]
        contact_sheet(frames, rows=ROWS).save(given.sheet, optimize=True)
    report = {
        "tokenizer": {"heldout": heldout, "training": tokenizer_figures(plain, training)},
        "nearest": {
            "samples": len(found),
            "share_of_own_class": round(sum(found) / len(found), 4),
            "wrong": sorted(set(wrong)),
        },
        "motion": {
            f"share_from_{LOW}_to_{HIGH}": round(float(((ratio >= LOW) & (ratio <= HIGH)).float().mean()), 4),
            **{f"percentile_{p}": round(float(ratio.quantile(p / 100)), 3) for p in (5, 25, 50, 75, 95)},
        },
        "tokens": {
            "mean": round(float(equal.mean()), 3),
            **{f"percentile_{p}": round(float(equal.quantile(p / 100)), 3) for p in (5, 25, 50)},
        },
        "starts": round(sum(len(part.unique()) for part in begins.split(given.samples)) / len(names), 3),
        "settings": {name: getattr(pipeline.settings(**settings), name) for name in settings},
        **machine(pipeline, began),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False))


def as_tensor(frames: tuple[Image.Image, ...]) -> Tensor:
    """Frames -> (frames, pixels) in [0, 1]."""
    return torch.from_numpy(np.stack(frames)).flatten(1).float() / 255


def change(clip: Tensor) -> float:
    """Mean absolute change of (frames, pixels) from frame to frame."""
    return float(clip.diff(dim=0).abs().mean())


def loop_distances(samples: Tensor, clips: Tensor) -> Tensor:
    """Summed squared differences of each sample and each clip from each frame on.

    (S, F, pixels) and (C, F, pixels) -> (S, C, F).
    """
    length = clips.shape[1]
    squares = clips.square().sum(2)  # (C, F)
    found = []
    for sample in samples:
        products = torch.einsum("fp,cgp->cfg", sample, clips)
        pairs = sample.square().sum(1)[:, None] - 2 * products + squares[:, None]  # (C, F, F)
        along = torch.arange(length)
        found.append(torch.stack([pairs[:, along, (along + s) % length].sum(1) for s in range(length)], 1))
    return torch.stack(found)


if __name__ == "__main__":
    main()
