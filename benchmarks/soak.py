"""Many pictures in one process: does it grow, slow down, or leave something behind?

    python benchmarks/soak.py [--num 300] [--model MODEL] [--warm 20]

Runs ``narcli image --num NUM``, by default with the built-in model `emoji`, watching its memory from outside.
A machine does not keep its own pace over minutes, and two processes differ by their places in memory: so the
process is compared with a second one that mostly stands still, when both are young and again near its end, in
turns of a few pictures while the other is stopped. It slows down if it has lost against that one.
Prints one JSON line; exits with 1 if after the first --warm pictures the memory grew by more than 5 %, if a
picture takes more than 8 % longer in the end (10 % but for what the second one, with a fifth of the pictures
between, may have lost itself), or if anything but the pictures is left.
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
        self.num = num
        self.process = subprocess.Popen([*CLI, *words], stdout=subprocess.DEVNULL, env=environment)
        self.held: list[int] = []  # bytes at each look, once it is warm

    def pictures(self) -> list[Path]:
        return list(self.out.glob("*.png"))

    def go_on(self, count: int, warm: int) -> None:
        """Run until there are so many pictures, then stand still; or to the end if there are no more."""
        self.process.send_signal(signal.SIGCONT)
        while (there := len(self.pictures())) < count and self.process.poll() is None:
            if there >= warm and (held := resident(self.process.pid)):
                self.held.append(held)
            time.sleep(LOOK)
        self.process.send_signal(signal.SIGSTOP)
        code, there = self.process.returncode, len(self.pictures())
        if code or (code is not None and there < min(count, self.num)):
            raise SystemExit(f"exit code {code}, {there} of {self.num} pictures")

    def turn(self, warm: int) -> list[float]:
        """Go on for some pictures; the seconds of those that were made in one go."""
        began = len(self.pictures())
        self.go_on(began + 1 + EACH, warm)
        times = sorted(path.stat().st_mtime for path in self.pictures())[began : began + 1 + EACH]
        return [later - earlier for earlier, later in pairwise(times)]


def main() -> int:
    """Run it, look, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--model", default="emoji", help="one of images of classes")
    parser.add_argument("--warm", type=int, default=20, help="pictures before memory and pace count")
    given = parser.parse_args()
    last = TURNS * (EACH + 3)  # pictures of all turns of one comparison, those across a stop included
    if given.num < (least := given.warm + 3 * last):
        parser.error(f"--num is {given.num}, expected at least {least}")
    with tempfile.TemporaryDirectory(prefix="narcli-soak-") as folder, ExitStack() as at_end:
        runs = {}
        for name, num in (("soaked", given.num), ("other", given.warm + 2 * last)):
            runs[name] = run = Run(Path(folder) / name, given.model, num)
            at_end.callback(run.process.kill)  # also after Ctrl-C, which a stopped one would not hear
            run.go_on(given.warm, given.warm)
        soaked, other = runs.values()
        young = compare(soaked, other, given.warm)
        soaked.go_on(given.num - last, given.warm)
        old = compare(soaked, other, given.warm)
        other.process.kill()
        other.process.wait()
        soaked.go_on(given.num + 1, given.warm)
        pictures = soaked.pictures()
        left = [p.name for p in (*soaked.out.iterdir(), *soaked.temporary.iterdir()) if p not in pictures]
    quarter = max(1, len(soaked.held) // 4)
    before = statistics.median(soaked.held[:quarter])
    growth = statistics.median(soaked.held[-quarter:]) / before - 1
    slower = (old[0] / old[1]) / (young[0] / young[1]) - 1
    said = {
        "pictures": given.num,
        "memory_mb": round(before / 1e6),
        "memory_growth_percent": round(100 * growth, 2),
        "seconds_a_picture": {
            name: dict(zip(runs, (round(value, 4) for value in times), strict=True))
            for name, times in (("young", young), ("old", old))
        },
        "slower_percent": round(100 * slower, 1),
        "left_over": left,
        "passed": growth <= 0.05 and slower <= 0.08 and not left,
    }
    print(json.dumps(said))
    return int(not said["passed"])


def compare(soaked: Run, other: Run, warm: int) -> tuple[float, float]:
    """Seconds that a picture takes in each, in turns."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for run, times in zip((soaked, other), took, strict=True):
            times += run.turn(warm)
    return statistics.median(took[0]), statistics.median(took[1])


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
