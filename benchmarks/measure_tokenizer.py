"""Measure what the tokenizer of `emoji` makes of pictures (docs/builtin-models.md).

    python benchmarks/measure_tokenizer.py DATA [--model FOLDER] [--every 1]

DATA is what scripts/prepare_emoji.py wrote; of its static pictures and frames kept out of training each
``--every``-th is taken, in float32. Prints one JSON document, for both:

- psnr_db: mean over the pictures of each one's PSNR;
- detail: energy of fine detail, by that of the pictures: summed squares of pixels less the mean of their
  2 x 2 pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import narcli
from narcli.training.data import to_unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="emoji", help="a model, or a folder of narcli train tokenizer")
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    items = [line.split("\t") for line in (given.data / "pictures" / "items.tsv").read_text().splitlines()]
    places = [place for place, (_, frame) in enumerate(items) if frame == "static"]
    heldout = np.load(given.data / "heldout" / "images.npy", mmap_mode="r")
    groups = {
        "static": np.load(given.data / "pictures" / "images.npy", mmap_mode="r")[places[:: given.every]],
        "heldout": heldout[:: given.every],
    }
    tokenizer = load(given.model)
    print(json.dumps({name: figures(tokenizer, images) for name, images in groups.items()}, indent=1))


def load(model: str) -> torch.nn.Module:
    """The tokenizer of a model, or the one in a folder that holds no more."""
    if Path(model).is_dir():
        from narcli.checkpoints.load import load_tokenizer

        return load_tokenizer(Path(model))
    return narcli.load(model, dtype="float32").tokenizer


@torch.inference_mode()
def figures(tokenizer: torch.nn.Module, images: np.ndarray) -> dict[str, float]:
    """PSNR and fine detail of a float32 tokenizer on uint8 (N, H, W, 3), decoded as files hold it."""
    psnr: list[float] = []
    kept = total = 0.0
    for begin in range(0, len(images), 16):
        pixels = to_unit(torch.from_numpy(np.array(images[begin : begin + 16])))
        grid = [side // tokenizer.config.downsampling for side in pixels.shape[-2:]]
        decoded = tokenizer.decode(tokenizer.encode(pixels), tuple(grid)).clamp(-1, 1)
        decoded = ((decoded + 1) * 127.5).round() / 127.5 - 1
        error = (decoded - pixels).square().flatten(1).mean(1)
        psnr += (10 * torch.log10(4 / error.clamp_min(1e-10))).tolist()
        kept, total = kept + detail(decoded), total + detail(pixels)
    return {
        "pictures": len(psnr),
        "psnr_db": round(sum(psnr) / len(psnr), 2),
        "detail": round(kept / total, 4),
    }


def detail(pixels: torch.Tensor) -> float:
    """Energy of pixels less the mean of their 2 x 2 pixels."""
    coarse = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2)
    return float((pixels - coarse).square().sum())


if __name__ == "__main__":
    main()
