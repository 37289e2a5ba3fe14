"""Settings of a process that suit large tensors: huge pages, freed memory that is kept, short waits awake.

By default glibc gives large blocks back to the system when they are freed, and the next tensor of that size
costs a page fault every 4 KiB. GCC's OpenMP lets threads wait awake for milliseconds, even where another
process needs the processor. For the commands only: it is for a program to decide, not for a library.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# From malloc.h: parameters of mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Blocks below this come from the heap; the largest value that mallopt takes.
HEAP_BLOCK = 32 * 2**20
#: Rounds that a thread of GCC's OpenMP waits awake; see docs/notes/speed.md.
SPINS = 3000


def keep_memory() -> None:
    """Choose the settings, where the system has them; call before torch is imported."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch loads OpenMP, as this is
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Give freed memory that was kept back to the system, where it has a way."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
