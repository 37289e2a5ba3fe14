"""Memory settings of the commands."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

import narcli
from narcli import allocator

FAULTS = """
import sys
if "keep" in sys.argv:
    from narcli.allocator import keep_memory
    keep_memory()
    assert "torch" not in sys.modules
import resource, torch

def work():
    for megabytes in (24, 12, 28):
        tensors = [torch.ones(megabytes * 2**18) for _ in range(3)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_tensors_are_kept_for_the_next_ones():
    settings = ("MALLOC", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not any(s in name for s in settings)}
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, *arguments],
                env=environment | {"PYTHONPATH": str(Path(narcli.__file__).parents[1])},
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for arguments in ([], ["keep"])
    ]  # fmt: skip
    assert faults[1] < faults[0] / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's OpenMP")
@pytest.mark.parametrize(
    ("running", "given", "expected"),
    [
        (1, {}, None),
        (2, {}, "3000"),
        (2, {"GOMP_SPINCOUNT": "77"}, "77"),
        (2, {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_awake_only_briefly_beside_others_unless_the_user_says_otherwise(
    running, given, expected, tmp_path
):
    (tmp_path / "loadavg").write_text(f"1.11 1.20 1.43 {running}/79 17473\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    code = f"""
import pathlib, narcli.allocator
narcli.allocator.RUNNING = pathlib.Path({str(tmp_path / "loadavg")!r})
narcli.allocator.keep_memory()
import torch; torch.ones(10**6).sum()
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=environment
        | given
        | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(Path(narcli.__file__).parents[1])},
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("another OpenMP")
    assert (f"GOMP_SPINCOUNT = '{expected}'" in told) == (expected is not None)
    assert "GOMP_SPINCOUNT = '3000'" not in told or expected == "3000"


@pytest.mark.skipif(not allocator.RUNNING.exists(), reason="only Linux counts running threads")
def test_a_busy_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            time.sleep(0.2)
            assert allocator.is_busy()
        finally:
            busy.kill()


@pytest.mark.parametrize("text", [None, "", "no numbers", "1.1 1.2 1.4 x/79 1"])
def test_a_system_that_counts_no_processes_is_taken_as_quiet(text, tmp_path, monkeypatch):
    monkeypatch.setattr(allocator, "RUNNING", tmp_path / "loadavg")
    if text is not None:
        allocator.RUNNING.write_text(text)
    assert not allocator.is_busy()
