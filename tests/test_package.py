"""What is shipped: the wheel has the data, installs, and makes a picture on its own."""

import json
import os
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from narcli import __version__
from narcli.hub import catalog as registry

ROOT = Path(__file__).parents[1]
WEIGHTS = ("config.json", "model.safetensors", "tokenizer.safetensors")
ENCODER = ("config.json", "model.safetensors", "tokenizer_config.json")
NAMES = (*ENCODER, "tokenizer.json", "names.txt", "names.safetensors")
MAX_WEIGHTS = {"emoji": 32e6, "emoji-text": 45e6, "emoji-video": 30e6}  # bytes


def run(*command, **options):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling (of the dev extra) builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of commands of a fresh environment that has the wheel, and sees the dependencies of this one."""
    pytest.importorskip("pip", reason="pip installs the wheel")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    paths = {"base": str(folder), "platbase": str(folder)}
    scheme = sysconfig.get_preferred_scheme("prefix") if sys.version_info < (3, 11) else "venv"
    packages = Path(sysconfig.get_path("purelib", scheme, paths))
    # Listed here, these folders' own .pth files do not count: an editable narcli stays out of sight.
    here = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(here)))
    scripts = Path(sysconfig.get_path("scripts", scheme, paths))
    run(
        *(sys.executable, "-m", "pip", "--python", scripts / "python", "install"),
        *("--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel),
    )
    return scripts


@pytest.fixture
def plain(tmp_path):
    """An environment without paths to the sources, a home, or a Hub."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "SYSTEMROOT") if name in os.environ}
    return kept | {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": os.environ.get("PATH", "")}


def test_the_wheel_has_the_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if name.startswith("narcli/")}
    there = {
        path.relative_to(registry.WEIGHTS.parents[1]).as_posix()
        for path in registry.WEIGHTS.parent.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert packed - {"narcli/kernels/libnative.so"} == there
    assert {f"narcli/classes/{name}" for name in ("emoji.tsv", "imagenet1k.txt", "ucf101.txt")} <= packed
    for model in MAX_WEIGHTS:
        assert {
            f"narcli/weights/{model}/{name}" for name in WEIGHTS[: 2 if model == "emoji-text" else 3]
        } <= packed
    assert {f"narcli/weights/emoji-text/text_encoder/{name}" for name in ENCODER} <= packed
    assert {f"narcli/weights/emoji-text/text_encoder/names/{name}" for name in NAMES} <= packed
    others = {name for name in names - packed if not name.startswith(f"narcli-{__version__}.dist-info/")}
    assert not others
    licenses = {"LICENSE", "LICENSE.Apache-2.0", "NOTICE"}
    assert {f"narcli-{__version__}.dist-info/licenses/{name}" for name in licenses} <= names
    assert wheel.stat().st_size <= 90e6


def test_the_wheel_is_of_a_platform_if_something_in_it_was_compiled(wheel):
    compiled = "narcli/kernels/libnative.so" in zipfile.ZipFile(wheel).namelist()
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl" if compiled else "-py3-none-any.whl")
    if sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("c++"):
        assert compiled


def test_the_source_distribution_has_what_is_compiled_and_nothing_that_was(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling (of the dev extra) builds it")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"hatch_build.py", "src/narcli/kernels/native.cpp", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_the_wheel_states_the_version_and_dependencies(wheel):
    text = zipfile.ZipFile(wheel).read(f"narcli-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in text and "Requires-Dist: torch>=" in text


def test_the_built_in_weights_are_small():
    assert {model.name for model in registry.WEIGHTS.iterdir()} == MAX_WEIGHTS.keys()
    for name, limit in MAX_WEIGHTS.items():
        files = [path for path in (registry.WEIGHTS / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= limit, name


def test_nothing_is_shipped_twice(wheel):
    large = [entry for entry in zipfile.ZipFile(wheel).infolist() if entry.file_size > 1e6]
    assert len({(entry.CRC, entry.file_size) for entry in large}) == len(large)


def test_an_installed_narcli_is_the_wheels(installed, plain, tmp_path):
    assert run(installed / "narcli", "--version", env=plain, cwd=tmp_path) == f"narcli {__version__}\n"
    code = (
        "import narcli, narcli.classes; print(narcli.__file__, len(narcli.classes.load_table('imagenet1k')))"
    )
    file, count = run(installed / "python", "-c", code, env=plain, cwd=tmp_path).rsplit(maxsplit=1)
    assert Path(file).is_relative_to(installed.parent) and count == "1000"


def test_an_installed_narcli_makes_a_picture_of_a_dog(installed, plain, tmp_path):
    from PIL import Image

    from narcli.media.readers import read_metadata

    command = (installed / "narcli", "image", "--class", "207", "--seed", "0", "--json")
    document = json.loads(run(*command, env=plain, cwd=tmp_path))
    picture, frontier = (tmp_path / file for file in document["files"])
    with Image.open(picture) as image:
        assert image.size == (256, 256)
        assert len(image.convert("RGB").getcolors(2**16)) > 100  # not one flat colour
    assert read_metadata(picture)["class"]["stands_for"] == "golden retriever"
    with Image.open(frontier) as animation:
        assert animation.n_frames >= 31


def test_an_installed_narcli_makes_a_picture_of_words(installed, plain, tmp_path):
    from narcli.media.readers import read_metadata

    words = ("image", "--prompt", "a red apple", "--seed", "0", "--frontier", "none", "--json")
    document = json.loads(run(installed / "narcli", *words, env=plain, cwd=tmp_path))
    (picture,) = document["files"]
    assert read_metadata(tmp_path / picture)["model"]["name"] == "emoji-text"


def test_an_installed_narcli_makes_a_clip_of_a_kangaroo_that_moves(installed, plain, tmp_path):
    import numpy as np
    from imageio_ffmpeg import read_frames
    from PIL import Image

    command = (installed / "narcli", "video", "--class", "5", "--frames", "16", "--seed", "0", "--json")
    document = json.loads(run(*command, env=plain, cwd=tmp_path))
    clip, frontier = (tmp_path / file for file in document["files"])
    stream = read_frames(str(clip))
    width, height = next(stream)["size"]
    frames = np.stack([np.frombuffer(frame, np.uint8) for frame in stream]).astype(int)
    assert (len(frames), width, height) == (16, 256, 256)
    changes = np.abs(np.diff(frames, axis=0)).mean(1)
    assert changes.min() > 1  # levels of 256, over all pixels
    assert changes.max() < 40  # and no flicker
    with Image.open(frontier) as animation:
        assert animation.n_frames >= 34


def test_python_m_narcli_is_the_command(tmp_path):
    def said(*arguments):
        command = [sys.executable, "-m", "narcli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert said("--version").stdout.startswith("narcli ")
    unknown = said("image", "--class", "1", "--model", "nothing")
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: There is no model 'nothing'")
    assert "Usage: python -m narcli image" in said("image", "--nothing").stderr
