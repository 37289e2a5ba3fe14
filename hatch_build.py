"""Compile narcli's C++ where there is a compiler; without it narcli does all the same, more slowly."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/narcli/kernels/native.cpp")
LIBRARY = SOURCE.with_name("libnative.so")
OPTIMISED = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing"]
#: What ``native.can_run`` asks for: all that PyTorch calls AVX512, and for one of the formats AVX512-BF16.
PROCESSOR = ["-mfma", "-mpopcnt", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"]


class NativeHook(BuildHookInterface[Any]):
    """Adds the library to a wheel, or puts it into the folder of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds: ``version`` is ``standard`` or ``editable``."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return
        self.folder = tempfile.TemporaryDirectory(prefix="narcli-build-")  # goes with the hook
        library, root = Path(self.folder.name) / LIBRARY.name, Path(self.root)
        try:
            compile_library(root / SOURCE, library)
            if version == "editable":
                beside = root / LIBRARY.with_name(f"libnative.{os.getpid()}.so")
                shutil.copy(library, beside)
                beside.replace(root / LIBRARY)  # one that is in use stays whole
                return
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"narcli is installed without its compiled part: {error}")
            return
        build_data["force_include"][str(library)] = str(LIBRARY.relative_to("src"))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"


def compile_library(source: Path, library: Path) -> None:
    """Compile ``source`` to ``library`` with the compiler that ``CXX`` names, ``c++`` if it does not.

    Raises:
        OSError, ValueError, CalledProcessError: there is no such compiler, or it fails.
    """
    compiler, part = shlex.split(os.environ.get("CXX") or "c++"), library.with_suffix(".o")
    which = f"-DSOURCE={crc32(source.read_bytes())}u"  # native.library compares it
    subprocess.run([*compiler, *OPTIMISED, *PROCESSOR, which, "-c", source, "-o", part], check=True)
    # Not linked with OpenMP: the calls are to find the one that torch has loaded.
    subprocess.run([*compiler, "-shared", part, "-o", library], check=True)
    with library.open("ab") as file:  # loaders ignore it; native.is_whole compares it
        file.write(sha256(library.read_bytes()).digest())
