"""Measure what docs/speed.md reports: the built-in model `emoji` from the shell, and NAR-B at 256 px.

    python benchmarks/speed.py [--repeats 7]

NAR-B and VQ-16 have random weights, written in the released containers to a temporary folder. Prints one
JSON document; times are medians of warm runs unless they say otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLI = [sys.executable, "-c", "from narcli.cli import main; raise SystemExit(main())"]


def shell(*arguments: str) -> tuple[float, int, str]:
    """Seconds, peak memory in bytes and stdout of one narcli process."""
    began = time.perf_counter()
    process = subprocess.Popen([*CLI, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, output
    return time.perf_counter() - began, usage.ru_maxrss * 1024, output


def write_released(folder: Path) -> None:
    """NAR-B and VQ-16 with random weights, named and packed like the released files."""
    import torch

    from narcli.checkpoints.formats.transformer import IMAGE_HEADS, released_names
    from narcli.models.blocks import TransformerConfig, ffn_dim
    from narcli.models.transformer import NARTransformer
    from narcli.models.vq import VQConfig, VQTokenizer

    torch.manual_seed(0)
    sizes = TransformerConfig((16, 16), 768, 12, 12, 16384, ffn_dim(768), num_classes=1000)
    model = NARTransformer(sizes)
    model.init_weights()
    for head in model.ordered_heads:
        torch.nn.init.normal_(head.output.weight, std=0.02)
    names = {ours: theirs for theirs, ours in released_names(IMAGE_HEADS, sizes.total_layers).items()}
    torch.save({"model": {names[k]: v for k, v in model.state_dict().items()}}, folder / "nar-b.pt")
    torch.save({"model": VQTokenizer(VQConfig()).state_dict()}, folder / "vq16.pt")


def released(folder: Path, dtype: str, repeats: int) -> dict[str, float]:
    """NAR-B at 256 px, guidance 2, one image; run in a process of its own for the peak memory."""
    from narcli.allocator import keep_memory

    keep_memory()  # as the commands do
    import torch

    import narcli

    pipeline = narcli.load(folder / "nar-b.pt", tokenizer=folder / "vq16.pt", dtype=dtype)
    tokens, decode = [], []
    for _ in range(repeats + 2):
        seconds = [progress.seconds for progress in pipeline.steps(207, seed=0, cfg_scale=2.0)][-1]
        tokens.append(seconds["sample"])
        decode.append(seconds["decode"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "load_seconds": round(pipeline.load_seconds, 2),
        "tokens_seconds": round(statistics.median(tokens[2:]), 3),
        "decode_seconds": round(statistics.median(decode[2:]), 3),
        "peak_gb": round(peak / 1e9, 2),
    }


def machine() -> dict[str, object]:
    """What the machine gives: memory bandwidth and matrix throughput."""
    import torch

    from narcli.bench import machine as bench

    place, numbers = torch.device("cpu"), torch.bfloat16
    return bench.machine(place, numbers, bench.measure_limits(place, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--released", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.released:
        print(json.dumps(released(given.released, given.dtype, given.repeats)))
        return
    report: dict[str, Any] = {}
    report["help_seconds"] = round(statistics.median(shell("--help")[0] for _ in range(given.repeats)), 3)
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            shell("image", "--class", "207", "--seed", "0", "-o", f"{folder}/{i}.png", "--json", "--quiet")
            for i in range(given.repeats)
        ]
        documents = [json.loads(output) for _, _, output in runs]
        report["emoji"] = {
            "image_seconds": round(statistics.median(seconds for seconds, _, _ in runs), 2),
            "peak_gb": round(max(memory for _, memory, _ in runs) / 1e9, 2),
            "phases": {
                phase: round(statistics.median(d["seconds"][phase] for d in documents), 3)
                for phase in documents[0]["seconds"]
            },
        }
        # In a process of its own: a child's peak memory starts at its parent's.
        writer = multiprocessing.get_context("spawn").Process(target=write_released, args=(Path(folder),))
        writer.start()
        writer.join()
        time.sleep(2)  # what has just changed gets no converted copy
        report["nar_b_256"], repeats = [], ["--repeats", str(given.repeats)]
        for dtype in ("bfloat16", "float32"):
            # Twice: the first run writes the converted copies that the second one reads.
            first, then = (
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, f"--released={folder}", f"--dtype={dtype}", *repeats],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                        env=os.environ | {"XDG_CACHE_HOME": folder},
                    ).stdout
                )
                for _ in range(2)
            )
            report["nar_b_256"].append(then | {"first_load_seconds": first["load_seconds"]})
    report["machine"] = machine()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
