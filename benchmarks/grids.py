"""Does the time of an image's tokens grow faster than the work, from a grid of 16x16 to 32x32?

    python benchmarks/grids.py [--model nar-b-256] [--sides 16,24,32] [--repeats 3] [--dtype auto]

The network of a released class model with random weights, in next-neighbor order, guidance 2, one image. The
work is what the machine's limits leave for it, as `narcli bench` counts it, measured anew beside each grid.
Prints one JSON document; exits with 1 if a larger grid takes a smaller share of its limit, by more than a
tenth, than the first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from narcli.allocator import keep_memory
from narcli.bench import machine, measure, weights
from narcli.devices import choose_device, choose_dtype
from narcli.hub.catalog import MODELS
from narcli.settings import SamplingSettings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="nar-b-256")
    parser.add_argument("--sides", default="16,24,32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    keep_memory()
    device = choose_device("auto")
    dtype = choose_dtype(given.dtype, device)
    cases = []
    for side in map(int, given.sides.split(",")):
        row = replace(MODELS[given.model], grid=(side, side))
        limits = machine.measure_limits(device, dtype)
        settings = SamplingSettings(cfg_scale=2.0)
        with weights.model_files(row, None, dtype) as files:
            (case,) = measure.measure(files, [1], settings, device, dtype, limits, given.repeats)
        cases.append(
            {"grid": [side, side], **case.document([case]), "machine": machine.machine(device, dtype, limits)}
        )
    shares = [case["share_of_limit"] for case in cases]
    passed = min(shares) >= 0.9 * shares[0]
    about = {"model": given.model, "repeats": given.repeats, "cases": cases, "passed": passed}
    print(json.dumps(about))
    return int(not passed)


if __name__ == "__main__":
    raise SystemExit(main())
