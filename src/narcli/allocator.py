"""Process settings for large tensors: huge pages, kept memory, short spinning of threads.

By default glibc gives large blocks back to the system when they are freed, and the next tensor of that size
costs a page fault every 4 KiB. GCC's OpenMP lets threads spin for milliseconds, even while another
process needs the processor. Only the commands call this, since a library must not change its process.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

# From malloc.h: parameters of mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Blocks below this come from the heap; the largest value that mallopt takes.
HEAP_BLOCK = 32 * 2**20
#: Rounds that a thread of GCC's OpenMP spins beside other busy processes; see docs/notes/speed.md.
SPINS = 3000
#: Linux counts the running threads of all processes here.
RUNNING = Path("/proc/loadavg")


def keep_memory() -> None:
    """Apply the settings that the system has; call it before torch is imported."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    if "OMP_WAIT_POLICY" not in os.environ and is_busy():  # read when torch loads OpenMP
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def is_busy() -> bool:
    """Tell if other processes keep running on this machine; False if the system does not say."""
    for attempt in range(5):
        if attempt:
            time.sleep(0.002)
        try:
            running = int(RUNNING.read_text().split()[3].split("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        if running < 2:  # this process alone
            return False
    return True


def give_back() -> None:
    """Return kept memory to the system, if its C library can."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
