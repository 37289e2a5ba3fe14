"""How far samples in bfloat16 differ from those in float32, of the same seeds.

    python benchmarks/precision.py [--samples 100]

Prints one JSON document: for each built-in model of images of classes and of clips, drawn at its default
settings, the share of equal tokens and of samples without a difference. How the pictures of
`emoji` fare is told by `measure_emoji.py --dtype`.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

import narcli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    given = parser.parse_args()
    report: dict[str, object] = {"torch": torch.__version__}
    for name, kind in (("emoji", "image"), ("emoji-video", "video")):
        drawn = []
        for dtype in ("float32", "bfloat16"):
            pipeline = narcli.load(name, kind=kind, dtype=dtype)
            spread = np.unique(np.linspace(0, len(pipeline.classes) - 1, given.samples).round().astype(int))
            names = [pipeline.classes.entry(int(label)).name for label in spread]
            results = pipeline.images(names, seed=0)
            drawn.append(torch.stack([result.tokens for result in results]))
        same = drawn[0] == drawn[1]
        report[name] = {
            "samples": len(same),
            "equal_tokens": round(float(same.float().mean()), 4),
            "equal_samples": round(float(same.all(1).float().mean()), 4),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
