"""Compile narcli's C++ where there is a compiler; without it narcli does all the same, more slowly."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/narcli/models/native.cpp")
LIBRARY = SOURCE.with_name("libnative.so")
OPTIMISED = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing"]
#: What ``native.library`` and ``native.can_run`` ask the processor for.
PROCESSOR = ["-mfma", "-mpopcnt", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"]


class NativeHook(BuildHookInterface[Any]):
    """Adds the library to the wheel, or to the folder of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is built."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return
        source, library = Path(self.root) / SOURCE, Path(self.root) / LIBRARY
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        made = library.with_suffix(f".{os.getpid()}.so")
        part = made.with_suffix(".o")
        version = f"-DSOURCE={crc32(source.read_bytes())}u"  # what native.library compares
        try:
            subprocess.run([*compiler, *OPTIMISED, *PROCESSOR, version, "-c", source, "-o", part], check=True)
            # Not linked with OpenMP: the calls are to find the one that torch has loaded.
            subprocess.run([*compiler, "-shared", part, "-o", made], check=True)
            made.replace(library)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"narcli is installed without its compiled part: {error}")
            return
        finally:
            for file in (part, made):
                file.unlink(missing_ok=True)
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
