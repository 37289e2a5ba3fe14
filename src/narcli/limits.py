"""Memory available to a process on its device."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch


def available(device: torch.device, own: bool = True) -> int | None:
    """Bytes that a run may take on a device; None if unknown.

    On a CPU: available memory and swap of Linux, within the limits of the process and its control groups.

    Args:
        device: where it runs.
        own: include memory that this process already holds. On a card, what it holds and does not use is
            included in any case.
    """
    if device.type == "cuda":
        used = 0 if own else torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) - used
    try:
        system = sizes_told(Path("/proc/meminfo"))
        process = sizes_told(Path("/proc/self/status"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    import resource

    own_bytes = own * process.get("RssAnon", 0)
    limits = [system.get("MemAvailable", 0) + system.get("SwapFree", 0) + own_bytes]
    for kind, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            limits.append(limit - process.get(taken, 0) + own_bytes)
    return max(0, min([*limits, *(most - taken + own_bytes for most, taken in _control_groups())]))


def sizes_told(path: Path) -> dict[str, int]:
    """Read the sizes in a file of ``/proc``, in bytes, by name."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _control_groups() -> list[tuple[int, int]]:
    """(limit, taken) in bytes of each control group that limits this process, of version 1 or 2.

    A container sees its own group at the root, under a name that may not exist there.
    """
    groups, root = [], Path("/sys/fs/cgroup")
    # Files of the limit, and the lines of memory.stat for memory that the system cannot drop.
    version_1 = root / "memory", "memory.limit_in_bytes", ("total_rss", "total_shmem")
    version_2 = root, "memory.max", ("anon", "shmem")
    try:
        lines = Path("/proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if "memory" in controllers.split(","):
            mount, file, kinds = version_1
        elif number == "0" and not controllers:
            mount, file, kinds = version_2
        else:
            continue
        group = mount / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):  # no limit, or "max"
                most = int((folder / file).read_text())
                stat = (text.split() for text in (folder / "memory.stat").read_text().splitlines())
                taken = {key: int(value) for key, value in stat}
                groups.append((most, sum(taken.get(kind, 0) for kind in kinds)))
    return groups
