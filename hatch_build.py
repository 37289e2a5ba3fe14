"""Compile narcli's C++, where that is of use and there is a compiler; without it narcli is slower, no less."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/narcli/models/native.cpp")
LIBRARY = SOURCE.with_name("libnative.so")
FLAGS = """-O3 -std=c++17 -shared -fPIC -fno-exceptions -fno-rtti -mfma -mpopcnt
-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16""".split()


class NativeHook(BuildHookInterface[Any]):
    """Adds the library to the wheel, or to the folder of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is built."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return
        source, library = Path(self.root) / SOURCE, Path(self.root) / LIBRARY
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        made = library.with_suffix(f".{os.getpid()}.so")
        object_file = made.with_suffix(".o")
        try:
            # -fopenmp when compiling, not when linking: the calls are to find the OpenMP that torch has loaded.
            subprocess.run([*compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", str(object_file)], check=True)
            subprocess.run([*compiler, "-shared", str(object_file), "-o", str(made)], check=True)
            made.replace(library)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"narcli is installed without its compiled part: {error}")
            return
        finally:
            for file in (object_file, made):
                file.unlink(missing_ok=True)
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
