"""Many pictures in one process: does it grow, slow down, or leave something behind?

    python benchmarks/soak.py [--num 300] [--model MODEL] [--warm 20]

Runs ``narcli image --num NUM`` with the built-in model, watching its memory from outside. A machine does not
keep its own pace over minutes: so near its end the process is compared with a second, young one, of which
--warm pictures are done, in turns of a few pictures, while the other one is stopped.
Prints one JSON line; exits with 1 if after the first --warm pictures the memory grew by more than 5 %, if the
old process takes more than 10 % longer for a picture than the young one, or if anything but the pictures is
left.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

TURNS, EACH = 8, 4  # turns of each process, and pictures that count in each
LOOK = 0.05  # seconds between two looks
CLI = [sys.executable, "-c", "from narcli.cli import main; raise SystemExit(main())"]


class Run:
    """One process that makes pictures, and what it holds."""

    def __init__(self, place: Path, model: str, num: int) -> None:
        self.out, self.temporary = place / "out", place / "tmp"
        self.temporary.mkdir(parents=True)
        words = ["image", "--class", "dog", "--seed", "0", "--num", str(num), "--batch-size", "1"]
        words += ["--model", model, "--frontier", "none", "--quiet", "--output", f"{self.out}/"]
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen([*CLI, *words], stdout=subprocess.DEVNULL, env=environment)
        self.held: list[int] = []  # bytes at each look, once it is warm

    def pictures(self) -> list[Path]:
        return list(self.out.glob("*.png"))

    def until(self, count: int, warm: int) -> None:
        """Wait for so many pictures, or the end."""
        while (there := len(self.pictures())) < count and self.process.poll() is None:
            if there >= warm and (held := resident(self.process.pid)):
                self.held.append(held)
            time.sleep(LOOK)

    def turn(self, warm: int) -> list[float]:
        """Go on for some pictures, and stop; the seconds of those that were made in one go."""
        began = len(self.pictures())
        self.process.send_signal(signal.SIGCONT)
        self.until(began + 1 + EACH, warm)
        self.process.send_signal(signal.SIGSTOP)
        times = sorted(path.stat().st_mtime for path in self.pictures())[began : began + 1 + EACH]
        return [later - earlier for earlier, later in pairwise(times)]


def main() -> int:
    """Run it, look, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--warm", type=int, default=20, help="pictures before memory and pace count")
    given = parser.parse_args()
    last = TURNS * (EACH + 3)  # pictures of the turns, those across a stop included
    if given.num < given.warm + 2 * last:
        parser.error(f"--num is {given.num}, expected at least {given.warm + 2 * last}")
    with tempfile.TemporaryDirectory(prefix="narcli-soak-") as folder, ExitStack() as at_end:
        old = Run(Path(folder) / "old", given.model, given.num)
        at_end.callback(old.process.kill)  # also after Ctrl-C, which a stopped one would not hear
        old.until(given.num - last, given.warm)
        old.process.send_signal(signal.SIGSTOP)
        young = Run(Path(folder) / "young", given.model, given.warm + last)
        at_end.callback(young.process.kill)
        young.until(given.warm, given.warm)
        young.process.send_signal(signal.SIGSTOP)
        took: dict[Run, list[float]] = {old: [], young: []}
        for _ in range(TURNS):
            for run in took:
                took[run] += run.turn(given.warm)
        for run in took:
            run.process.send_signal(signal.SIGCONT)
        young.process.kill()
        young.process.wait()
        old.until(given.num + 1, given.warm)
        pictures = old.pictures()
        left = [path.name for path in (*old.out.iterdir(), *old.temporary.iterdir()) if path not in pictures]
    if old.process.returncode or len(pictures) != given.num:
        print(f"exit code {old.process.returncode}, {len(pictures)} of {given.num} pictures")
        return 1
    quarter = max(1, len(old.held) // 4)
    before = statistics.median(old.held[:quarter])
    growth = statistics.median(old.held[-quarter:]) / before - 1
    seconds = {"young": statistics.median(took[young]), "old": statistics.median(took[old])}
    said = {
        "pictures": given.num,
        "memory_mb": round(before / 1e6),
        "memory_growth_percent": round(100 * growth, 2),
        "seconds_a_picture": {name: round(value, 4) for name, value in seconds.items()},
        "left_over": left,
        "passed": growth <= 0.05 and seconds["old"] <= 1.1 * seconds["young"] and not left,
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
