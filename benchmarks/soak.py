"""Many pictures in one process: does it grow, slow down, or leave something behind?

    python benchmarks/soak.py [--num 300] [--model MODEL] [--warm 20]

Runs ``narcli image --num NUM`` with the built-in model, watching its memory from outside, and looking at the
times of its files afterwards.
Prints one JSON line; exits with 1 if after the first ``--warm`` pictures the memory grew by more than 5 %,
if the later half of the pictures came more than 10 % slower than the earlier, or if anything but the pictures
is left.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

LOOK = 0.05  # seconds between two looks at the memory
CLI = [sys.executable, "-c", "from narcli.cli import main; raise SystemExit(main())"]


def main() -> int:
    """Run it, look, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--warm", type=int, default=20, help="pictures before memory and pace count")
    given = parser.parse_args()
    if given.num < given.warm + 4:
        parser.error(f"--num is {given.num}, expected at least {given.warm + 4}")
    with tempfile.TemporaryDirectory(prefix="narcli-soak-") as folder:
        out, temporary = Path(folder) / "out", Path(folder) / "tmp"
        temporary.mkdir()
        words = ["image", "--class", "dog", "--seed", "0", "--num", str(given.num), "--batch-size", "1"]
        words += ["--model", given.model, "--frontier", "none", "--quiet", "--output", f"{out}/"]
        process = subprocess.Popen(
            [*CLI, *words], stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(temporary)}
        )
        samples: list[tuple[float, int]] = []  # (time, bytes)
        while process.poll() is None:
            if held := resident(process.pid):
                samples.append((time.time(), held))
            time.sleep(LOOK)  # seldom, so that looking takes nothing from what is looked at
        pictures = sorted(out.glob("*.png"))
        times = sorted(path.stat().st_mtime for path in pictures)
        left = [path.name for path in (*out.iterdir(), *temporary.iterdir()) if path not in pictures]
    if process.returncode or len(pictures) != given.num:
        print(f"exit code {process.returncode}, {len(pictures)} of {given.num} pictures")
        return 1
    times = times[given.warm :]
    sizes = [held for when, held in samples if when >= times[0]]
    quarter = max(1, len(sizes) // 4)
    before = statistics.median(sizes[:quarter])
    growth = statistics.median(sizes[-quarter:]) / before - 1
    took = [later - earlier for earlier, later in pairwise(times)]
    first, second = (statistics.median(part) for part in (took[: len(took) // 2], took[len(took) // 2 :]))
    said = {
        "pictures": given.num,
        "memory_mb": round(before / 1e6),
        "memory_growth_percent": round(100 * growth, 2),
        "seconds_a_picture": [round(first, 4), round(second, 4)],
        "left_over": left,
        "passed": growth <= 0.05 and second <= 1.1 * first and not left,
    }
    print(json.dumps(said))
    return int(not said["passed"])


def resident(pid: int) -> int:
    """Bytes of memory that a process holds for itself; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
