"""Throw damaged and hostile files at everything of narcli that reads files of others.

    python benchmarks/fuzz.py [--checkpoints 20000] [--media 5000] [--of TEXT] [--seed 0] [--jobs 2]
        [--only CASE]

Checkpoints are released pickles, safetensors and ``config.json`` (of all families, of narcli folders and
T5, and beside released files), and pickles that would run something; media are PNG, GIF, WebP, MP4, saved
tokens and documents of ``--json``. Files are damaged as bytes, or in the terms of their format, so that
they get past its first checks. Each case follows from the seed and its number alone; ``--only`` repeats one
and keeps its file. Anything but a success or a NarError is a finding: another exception, a crash, more than
``--limit`` seconds, more memory than ``GROWTH``, or something that was run. Prints findings and one JSON
line, where ``ways`` counts the different sentences of refusal; exits with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import math
import multiprocessing
import os
import pickletools
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": os.devnull, "OMP_NUM_THREADS": "1"}
os.environ.pop("NARCLI_IMAGE_MODEL", None)

import torch
from PIL import Image
from safetensors.torch import save

from narcli.checkpoints.containers import read_tensors
from narcli.checkpoints.convert import convert
from narcli.checkpoints.formats.transformer import IMAGE_HEADS, VIDEO_HEADS, released_names
from narcli.checkpoints.load import load_tokenizer, load_transformer, transformer_config
from narcli.checkpoints.save import save_model
from narcli.checkpoints.text_encoder import T5Encoder
from narcli.errors import MemoryLimitError, NarError
from narcli.media.metadata import lines, runs_of
from narcli.media.readers import read_metadata, read_tokens
from narcli.media.writers import write_gif, write_mp4, write_png, write_webp
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.runs.repeat import Trust, recipe_of, recorded

ADDRESSES = 2**32  # bytes that a worker may map besides what it has at its start: more than it may fill
GROWTH = 2**28  # bytes that one input may fill
DATA = Path(__file__).parents[1] / "tests" / "data"
CANARY = "canary"  # a file that hostile pickles would make in the working folder

#: What no file may bring about, among the events that Python audits. (Opening for writing is watched too.)
FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
    *("pty.spawn", "webbrowser.open", "code.__new__", "ctypes.dlsym", "shutil.rmtree", "shutil.move"),
}


@dataclass(frozen=True)
class Original:
    """A whole input.

    Args:
        name: for messages.
        files: of its folder.
        target: the file that is damaged.
        read: what narcli does with the folder and the target.
        weight: how often it is drawn.
        whole: narcli takes it as it is; otherwise it has to refuse it.
    """

    name: str
    files: dict[str, bytes]
    target: str
    read: Callable[[Path, Path], object]
    weight: int = 4
    whole: bool = True


# --- what narcli does with files ----------------------------------------------------------------------


def read_model(folder: Path, file: Path) -> None:
    place = folder if (folder / "model.safetensors").exists() else file
    transformer_config(place)
    load_transformer(place)


def read_released(folder: Path, _: Path) -> None:
    read_model(folder, folder / "m.pt")


def read_tokenizer(folder: Path, file: Path) -> None:
    load_tokenizer(folder if (folder / "config.json").exists() else file)


def read_text_encoder(folder: Path, _: Path) -> None:
    T5Encoder.load(folder, None).encode("a dog", 8)


def read_media(_: Path, file: Path) -> None:
    about = read_metadata(file)
    list(lines(about))
    trust = Trust({"offline": True})
    for run in runs_of(about):
        with contextlib.suppress(NarError):  # as `narcli rerun --verify` reads it
            recipe_of(file, run, trust)
            recorded(file, run)
    if file.suffix == ".safetensors":
        read_tokens(file)


# --- originals ----------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def packed(content: object, zipped: bool = True) -> bytes:
    torch.save(content, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def checkpoints(scratch: Path) -> list[Original]:
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    found = []
    kinds = {
        "image": {"grid": (4, 4), "num_classes": 5},
        "text": {"grid": (4, 4), "condition": "text", "condition_tokens": 3, "caption_dim": 8},
        "video": {"grid": (2, 2, 2), "num_classes": 5, "position": "absolute"},
    }
    released = {}
    for kind, more in kinds.items():
        model = NARTransformer(TransformerConfig(dim=8, layers=1, heads=1, vocab_size=16, ffn_dim=8, **more))
        model.init_weights()
        names = {
            new: old
            for old, new in released_names(VIDEO_HEADS if kind == "video" else IMAGE_HEADS, 4).items()
        }
        released[kind] = {names[name]: tensor for name, tensor in model.state_dict().items()}
        sizes = json.dumps({"n_head": 1, "n_layer": 1, "dim": 8, "grid": list(more["grid"])}).encode()
        for zipped in (True, False):
            files = {"config.json": sizes, "m.pt": packed({"model": released[kind]}, zipped)}
            name = f"{kind}, {'zip' if zipped else 'legacy'} pickle"
            found.append(Original(name, files, "m.pt", read_model, 20))
        found.append(Original(f"config.json beside {kind}", files, "config.json", read_released, 12))
        files = {"config.json": sizes, "m.safetensors": save(released[kind])}
        found.append(Original(f"{kind}, safetensors", files, "m.safetensors", read_model, 20))
    vq = VQTokenizer(VQConfig(32, (1,), 1, 32, codebook_size=16))
    for name, data in (
        ("vq.pt", packed({"model": vq.state_dict()})),
        ("vq.safetensors", save(vq.state_dict())),
    ):
        found.append(Original(name, {name: data}, name, read_tokenizer, 12))
    image = NARTransformer(TransformerConfig((4, 4), 8, 1, 1, 16, 8, num_classes=2))
    image.init_weights()
    files = files_of(save_model(scratch / "own", transformer=image, tokenizer=vq, classes=["cat", "dog"]))
    found += [
        Original("narcli folder", files, target, read, 16)
        for target, read in (
            ("model.safetensors", read_model),
            ("tokenizer.safetensors", read_tokenizer),
            ("config.json", read_model),
            ("config.json", read_tokenizer),
        )
    ]
    found += [*peers(scratch), *var_files(scratch)]
    larp = {"config.json": (DATA / "larp.config.json").read_bytes()}
    larp["model.safetensors"] = (DATA / "larp.safetensors").read_bytes()
    found += [Original("LARP", larp, target, read_tokenizer, 16) for target in larp]
    letters = ByT5Tokenizer(extra_ids=0)
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(letters), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    )
    T5Encoder(t5, letters).save(scratch / "t5")
    files = files_of(scratch / "t5")
    found += [Original("T5", files, target, read_text_encoder, 3) for target in files]
    for number, (name, code) in enumerate(hostile()):
        inside = inserted(zip_of(packed({"model": released["image"]})), code)
        for where, content in (("alone", b"\x80\x02" + code + b"."), ("in a checkpoint", inside)):
            files = {f"{number}.pt": content}
            found.append(Original(f"{name} {where}", files, f"{number}.pt", read_model, 1, False))
    return found


#: Golden files of LlamaGen, PAR, ZipAR (in a wrapper of training) and LARP-AR, each with its sizes.
PEERS = {
    "LlamaGen": ("peers/llamagen_c2i.pt", "peers/llamagen_c2i.json"),
    "LlamaGen of text": ("peers/llamagen_t2i.pt", "peers/llamagen_t2i.json"),
    "LlamaGen in a wrapper": ("peers/zipar_c2i.pt", "peers/zipar_c2i.json"),
    "PAR": ("peers/par_4x.pt", "peers/par_4x.json"),
    "LARP-AR": ("video-peers/larp_ar.safetensors", "video-peers/larp_ar.config.json"),
    "frame prediction": ("video-peers/larp_ar_fp.safetensors", "video-peers/larp_ar_fp.config.json"),
}


def peers(scratch: Path) -> Iterator[Original]:
    """Models of other systems as released, their ``config.json``, and narcli folders of them."""
    for name, (file, config) in PEERS.items():
        target = f"m{Path(file).suffix}"
        files = {"config.json": (DATA / config).read_bytes(), target: (DATA / file).read_bytes()}

        def read(folder: Path, _: Path, target: str = target) -> None:
            read_model(folder, folder / target)

        yield Original(name, files, target, read_model, 16)
        yield Original(name, files, "config.json", read, 12)
        made = scratch / f"own {name}"
        source = scratch / f"released {name}"
        source.mkdir()
        for each, content in files.items():
            (source / each).write_bytes(content)
        save_model(made, transformer=load_transformer(source / target))
        yield Original(f"{name}, narcli folder", files_of(made), "config.json", read_model, 8)
        yield Original(f"{name}, narcli folder", files_of(made), "model.safetensors", read_model, 8)


def var_files(scratch: Path) -> Iterator[Original]:
    """Transformers and tokenizers of VAR, checkpoints of its training, and a narcli folder."""
    place = DATA / "var"
    model, vae, both = ((place / name).read_bytes() for name in ("var.pth", "var_vae.pth", "var_saln.pth"))
    sizes = b'{"patch_nums": [1, 2, 3, 4], "depth": 3, "embed_dim": 64, "num_heads": 4, "num_classes": 10}'

    def read_beside(folder: Path, _: Path) -> None:
        read_model(folder, folder / "m.pth")

    def read_alone(_: Path, file: Path) -> None:
        load_tokenizer(file)

    yield Original("VAR", {"m.pth": model}, "m.pth", read_model, 20)
    yield Original("VAR", {"m.pth": model, "config.json": sizes}, "config.json", read_beside, 20)
    tensors = {name: each.contiguous() for name, each in read_tensors(place / "var.pth").items()}
    yield Original("VAR, safetensors", {"m.safetensors": save(tensors)}, "m.safetensors", read_model, 20)
    yield Original("VAR's tokenizer", {"m.pth": vae}, "m.pth", read_alone, 16)
    tensors = {name: each.contiguous() for name, each in read_tensors(place / "var_vae.pth").items()}
    name = "VAR's tokenizer, safetensors"
    yield Original(name, {"m.safetensors": save(tensors)}, "m.safetensors", read_alone, 16)
    files = {"m.pth": both, "config.json": b'{"num_heads": 3}'}
    yield Original("VAR, training checkpoint", files, "m.pth", read_model, 16)
    yield Original("VAR, training checkpoint", files, "config.json", read_beside, 8)
    yield Original("VAR's tokenizer, training checkpoint", {"m.pth": both}, "m.pth", read_alone, 16)
    folder = convert(place / "var.pth", scratch / "own VAR", tokenizer=place / "var_vae.pth")
    for target, read in (
        ("config.json", read_model),
        ("config.json", read_tokenizer),
        ("model.safetensors", read_model),
        ("tokenizer.safetensors", read_tokenizer),
    ):
        yield Original("VAR, narcli folder", files_of(folder), target, read, 12)


def hostile() -> Iterator[tuple[str, bytes]]:
    """Instructions of pickles that would leave a canary, and ones that lie about sizes."""
    touch = f"echo > {CANARY}"
    python = f"open('{CANARY}', 'w')"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    for module, name, argument in (
        *(("os", "system", touch), ("posix", "system", touch), ("os", "mkdir", CANARY)),
        *(("builtins", "eval", python), ("builtins", "exec", python), ("__builtin__", "eval", python)),
        *(("subprocess", "getoutput", touch), ("pathlib", "Path.touch", CANARY), ("os", "popen", touch)),
        *(("torch.hub", "load", "x/y"), ("torch", "load", CANARY), ("numpy", "load", CANARY)),
        *(
            ("torch.serialization", "load", CANARY),
            ("runpy", "run_path", CANARY),
            ("timeit", "timeit", python),
        ),
    ):
        named = f"c{module}\n{name}\n".encode()
        stacked = text(module) + text(name) + b"\x93"
        yield f"GLOBAL REDUCE {module}.{name}", named + b"(" + text(argument) + b"tR"
        yield f"STACK_GLOBAL NEWOBJ {module}.{name}", stacked + b"(" + text(argument) + b"t\x81"
        yield f"INST {module}.{name}", b"(" + text(argument) + f"i{module}\n{name}\n".encode()
        yield f"OBJ {module}.{name}", b"(" + named + text(argument) + b"o"
    state = b"}" + text("__setstate__") + b"cos\nsystem\ns"
    for name in ("argparse\nNamespace", "easydict\nEasyDict", "collections\nOrderedDict", "torch\nSize"):
        code = b"c" + name.encode() + b"\n)R"
        yield f"BUILD {name.split()[1]}", code + state + b"b" + text(touch) + b"b"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(N"
    yield "tensor without storage", tensor + b"K\0(J\xff\xff\xff\x7ft(K\1t\x89ccollections\nOrderedDict\n)RtR"
    yield "torch.Size of 2**60", b"ctorch\nSize\n((\x8a\x08" + bytes(7) + b"\x10ttR"
    for kind in (b"X", b"B", b"T"):
        yield f"{kind!r} of 2 GiB", kind + b"\xff\xff\xff\x7f" + b"x" * 9
    yield "memo of 2**31", b"Nr\xff\xff\xff\x7f"
    yield "deep", b"]" * 50_000 + b"a" * 49_999
    doubling = b"(" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    yield "doubling", b"]" + doubling[1:]


def media(scratch: Path) -> list[Original]:
    from typer.testing import CliRunner

    from narcli.cli import app

    file = scratch / "a.png"
    words = ["--class", "dog", "--frontier", "none", "--save-tokens", "--scale", "1", "--json"]
    made = CliRunner().invoke(app, ["image", *words, "--output", str(file)])
    assert made.exit_code == 0, made.output
    about, clip = read_metadata(file), [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    (scratch / "a.json").write_bytes(made.stdout_bytes)
    for suffix, write in ((".gif", write_gif), (".webp", write_webp), (".mp4", write_mp4)):
        write(file.with_suffix(suffix), clip, about)
    write_png(scratch / "small.png", clip[0], about)
    (scratch / "boxes.mp4").write_bytes(boxes(json.dumps(about).encode()))
    names = ["small.png", "a.gif", "a.webp", "a.mp4", "boxes.mp4", "a_tokens.safetensors", "a.json"]
    return [Original(n, {n: (scratch / n).read_bytes()}, n, read_media) for n in names]


# --- containers ---------------------------------------------------------------------------------------


def boxes(text: bytes) -> bytes:
    """The least MP4 with a comment."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    body = b"\0\0\0\1\0\0\0\0" + text
    for kind in (b"data", b"\xa9cmt", b"ilst"):
        body = box(kind, body)
    for kind in (b"meta", b"udta", b"moov"):
        body = box(kind, b"\0" * 4 * (kind == b"meta") + body)
    return box(b"ftyp", b"isom\0\0\0\0") + body


def zip_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def inserted(entries: dict[str, bytes], code: bytes) -> bytes:
    """A checkpoint whose pickle begins with that code."""
    name = next(name for name in entries if name.endswith("data.pkl"))
    program = entries[name]
    return zipped({**entries, name: program[:2] + code + b"0" + program[2:]})


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again, as far as there are chunks."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + size]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return out


# --- mutations ----------------------------------------------------------------------------------------

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 1000, 4096, 10**5, 2**24, 2**31, 2**63, 10**20, -(10**20)),
    *(0.0, 1.5, -2.5, 1e308, 1e-308, "", "x", "\x1b[2J", "../..", "/etc/passwd", "\ud800", "x" * 5000, "0"),
    *([], {}, [None], [[]], [0], [-1], [2**62, 2**62], [1, 1, 1], {"x": {}}, ["x"] * 50, [1] * 1000),
    *("nar", "raster", "zipar:3", "par:4", "var", "var:1-2-4", "frames", [1, 2, 4], [4, 2], [64] * 16),
    *("F32", "I64", "F8_E4M3", "BOOL", "t5", "float16", "os.system", [0, 2**63], [8, 0], [2**32] * 2),
]


def mutate_bytes(data: bytes, chance: random.Random, pool: list[bytes]) -> bytes:
    """A few changes anywhere, most of them near the start or the end, where the headers are."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        size = len(found)
        span = min(size, chance.choice((64, 600, 4000, size)))
        at = (
            chance.randrange(span or 1)
            if chance.random() < 0.6
            else max(0, size - 1 - chance.randrange(span or 1))
        )
        length = chance.choice((1, 2, 4, 8, 30, 300))
        match chance.randrange(8):
            case 0 if size:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                width, end = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
                number = chance.choice(NUMBERS) % 256**width
                found[at : at + width] = number.to_bytes(width, end)  # type: ignore[arg-type]
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length] * chance.choice((1, 1, 3, 200))
            case 4:
                found[at:at] = chance.randbytes(length)
            case 5 if chance.random() < 0.4:
                del found[at:]
            case 6:
                other = chance.choice(pool)
                start = chance.randrange(len(other))
                found[at : at + length] = other[start : start + length]
            case _ if size:
                found[at] = chance.randrange(256)
    return bytes(found)


def mutate_json(said: Any, chance: random.Random) -> Any:
    """A few values exchanged, keys renamed, added or removed."""
    said = copy.deepcopy(said)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        node: Any = said
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.75:
                node = node[key]
                continue
            value = node[key]
            match chance.randrange(6):
                case 0 if isinstance(node, dict):
                    node[chance.choice(["", "x", "__metadata__", "format", "\x1b[2J", *map(str, keys)])] = (
                        node.pop(key)
                    )
                case 1:
                    del node[key]
                case 2 if type(value) is int:
                    node[key] = chance.choice((value + 1, value - 1, -value, value * 2, value * 2**40))
                case 3:
                    node[key] = chance.choice(([value], {"x": value}, [value] * 3, str(value)))
                case _:
                    node[key] = copy.deepcopy(chance.choice(VALUES))
            break
    return said


def mutate_pickle(program: bytes, chance: random.Random, codes: list[bytes]) -> bytes:
    """Instructions left out, repeated, exchanged, or hostile ones put between."""
    try:
        starts = [at for _, _, at in pickletools.genops(program)]
    except Exception:  # some originals are no whole pickles
        return mutate_bytes(program, chance, codes)
    parts = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(chance.choice((1, 1, 2, 6))):
        at = chance.randrange(len(parts))
        match chance.randrange(5):
            case 0:
                parts[at : at + chance.choice((1, 3))] = []
                parts = parts or [b"."]
            case 1:
                parts[at:at] = parts[at : at + chance.choice((1, 3, 30))]
            case 2:
                parts[at], parts[-1 - at] = parts[-1 - at], parts[at]
            case 3:
                parts.insert(at, chance.choice(codes) + chance.choice((b"", b"0", b"b", b"s", b"R")))
            case _:
                parts[at] = mutate_bytes(parts[at], chance, codes)
    return b"".join(parts)


Tensors = dict[str, tuple[str, list[int], bytes]]  # number format, shape and content by name


def tensors_of(data: bytes) -> tuple[Tensors, dict[str, str]]:
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    about = header.pop("__metadata__", {})
    return {n: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for n, t in header.items()}, about


def written(tensors: Tensors, about: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": about} if about else {}
    at = 0
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in tensors.values())


def mutate_tensors(data: bytes, chance: random.Random) -> bytes:
    """A whole file of other tensors: names, shapes, number formats, contents, what it says of itself."""
    tensors, about = tensors_of(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not tensors:
            break
        name, other = chance.choice(list(tensors)), chance.choice(list(tensors))
        kind, shape, content = tensors[name]
        rows = shape[0] if shape else 0
        match chance.randrange(9):
            case 0:
                del tensors[name]
            case 1:
                names = ("", "x", f"{name}.x", f"layers.7.{name}", name.replace(".0.", ".1."), "\x1b[2J")
                tensors[chance.choice(names)] = tensors.pop(name)
            case 2:
                tensors[name], tensors[other] = tensors[other], tensors[name]
            case 3:
                shape = chance.choice(
                    (shape[::-1], [*shape, 1], [1, *shape], [math.prod(shape)], [*shape, 1, 1])
                )
                tensors[name] = kind, shape, content
            case 4:
                same = next(set for set in SAME_WIDTH if kind in set)
                tensors[name] = chance.choice(same), shape, content
            case 5 if rows:
                left = chance.randrange(rows)
                tensors[name] = kind, [left, *shape[1:]], content[: len(content) // rows * left]
            case 6 if rows:
                times = chance.choice((2, 3, 50))
                tensors[name] = kind, [rows * times, *shape[1:]], content * times
            case 7 if "narcli" in about:
                about["narcli"] = json.dumps(mutate_json(json.loads(about["narcli"]), chance))
            case _:
                tensors[name] = kind, shape, chance.randbytes(len(content))
    return written(tensors, about)


SAME_WIDTH = (("F64", "I64"), ("F32", "I32", "U32"), ("F16", "BF16", "I16"), ("U8", "I8", "BOOL", "F8_E4M3"))


def mutate(original: Original, chance: random.Random, pool: list[bytes], codes: list[bytes]) -> bytes:
    """One damaged version of the target, in the terms of its format or as mere bytes."""
    data, name = original.files[original.target], original.target
    if chance.random() < (0.15 if name.endswith(".json") else 0.3):
        data = mutate_bytes(data, chance, pool)
        return with_checksums(data) if name.endswith(".png") and chance.random() < 0.7 else data
    if name.endswith(".json"):
        return json.dumps(mutate_json(json.loads(data), chance)).encode()
    if name.endswith(".safetensors") and chance.random() < 0.75:
        return mutate_tensors(data, chance)
    if name.endswith(".safetensors"):
        (size,) = struct.unpack_from("<Q", data)
        header = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), chance)).encode()
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if name.endswith((".pt", ".pth")):
        if not data.startswith(b"PK"):
            return mutate_pickle(data, chance, codes)
        entries = zip_of(data)
        program = next(entry for entry in entries if entry.endswith("data.pkl"))
        part = program if chance.random() < 0.8 else chance.choice(list(entries))
        entries[part] = mutate_pickle(entries[part], chance, codes)
        return zipped(entries)
    text = json.dumps(mutate_json(ABOUT, chance)).encode()
    text = mutate_bytes(text, chance, pool) if chance.random() < 0.2 else text
    if name.endswith(".mp4"):
        return boxes(text)
    if name.endswith(".png"):
        body = b"iTXtnarcli\0\0\0\0\0" + text
        return (
            data[:33]
            + struct.pack(">I", len(body) - 4)
            + body
            + struct.pack(">I", zlib.crc32(body))
            + data[33:]
        )
    if name.endswith(".gif"):
        at = 13 + (3 * 2 ** (data[10] % 8 + 1) if data[10] & 128 else 0)
        blocks = b"".join(bytes([len(b := text[i : i + 255])]) + b for i in range(0, len(text), 255))
        return data[:at] + b"!\xfe" + blocks + b"\0" + data[at:]
    exif = Image.Exif()
    exif[0x010E] = text.decode("latin-1")
    body = exif.tobytes()
    return data[:12] + b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) + data[12:]


ABOUT: dict[str, Any] = {}  # the settings that a file of narcli holds

# --- running ------------------------------------------------------------------------------------------


class Plan:
    """All cases: case ``number`` is an original and its damaged version."""

    def __init__(
        self, count_checkpoints: int, count_media: int, seed: int, scratch: Path, of: str = ""
    ) -> None:
        self.seed = seed
        self.groups = [
            checkpoints(scratch) if count_checkpoints else [],
            media(scratch) if count_media else [],
        ]
        for original in self.groups[1]:
            if original.target == "a.json":
                ABOUT.update(read_metadata(scratch / "small.png"))
        self.groups = [[o for o in group if of in o.name] for group in self.groups]
        self.counts = tuple(
            count if group else 0
            for count, group in zip((count_checkpoints, count_media), self.groups, strict=True)
        )
        self.pools = [[o.files[o.target] for o in group] for group in self.groups]
        self.codes = [code for _, code in hostile() if len(code) < 1000]

    def __len__(self) -> int:
        return sum(self.counts)

    def case(self, number: int) -> tuple[Original, bytes]:
        chance = random.Random(f"{self.seed} {number}")
        group = int(number >= self.counts[0])
        originals = self.groups[group]
        first = number - group * self.counts[0]
        if first < len(originals):  # each as it is, once: a whole one that is refused would be fuzzed in vain
            return originals[first], originals[first].files[originals[first].target]
        (original,) = chance.choices(originals, [original.weight for original in originals])
        return original, mutate(original, chance, self.pools[group], self.codes)


def run_case(plan: Plan, number: int, limit: float, seen: list[str]) -> tuple[str, str]:
    """What came of a case, in words: ``loaded``, ``refused`` and why, or ``finding`` and what happened."""
    original, data = plan.case(number)
    folder = Path("case")
    shutil.rmtree(folder, ignore_errors=True)  # new files: the old ones may still be mapped
    folder.mkdir()
    for name, content in original.files.items():
        (folder / name).write_bytes(data if name == original.target else content)
    words, outcome, why = f"case {number} ({original.name}, {original.target})", "loaded", ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()  # not the wall's: other programs may be busy
    faulthandler.dump_traceback_later(6 * limit, exit=True)
    seen.clear()
    seen.append("")  # from here on events count
    try:
        original.read(folder, folder / original.target)
    except NarError as error:
        outcome, why = "refused", error.message
        if "\n" in why or len(why) > 2000 or isinstance(error, MemoryLimitError):
            return "finding", f"{words}: not a sentence about the file: {why[:300]!r}"
    except BaseException as error:
        return "finding", f"{words}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        faulthandler.cancel_dump_traceback_later()
        events = seen[1:]
        seen.clear()
    if events or Path(CANARY).exists() or (folder / CANARY).exists():
        return "finding", f"{words}: something was run: {events[:3]}"
    whole = data == original.files[original.target]
    if whole and outcome != ("loaded" if original.whole else "refused"):
        return "finding", f"{words}: as it is, it is {outcome}"
    if (spent := time.process_time() - began) > limit:
        return "finding", f"{words}: took {spent:.1f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > GROWTH:
        return "finding", f"{words}: took {grown / 1e6:.0f} MB"
    return outcome, re.sub(r"\d[\d,.]*|(['\"]).*?\1|case/\S+|\(.*", "_", why)[:50]  # names and numbers aside


def work(plan: Plan, numbers: list[int], limit: float, home: Path, pipe: Connection) -> None:
    """A worker: reports each case as it ends; if it dies, the next one has killed it."""
    home.mkdir(exist_ok=True)
    os.chdir(home)
    torch.set_num_threads(1)
    seen: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not seen or (event not in FORBIDDEN and event != "open"):
            return
        # Python caches what it compiles when something is imported for the first time.
        writes = event != "open" or (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and "__pycache__" not in str(arguments):
            seen.append(f"{event} {str(arguments)[:100]}")

    sys.addaudithook(audit)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESSES, taken + ADDRESSES))
    for number in numbers:
        began = time.process_time()
        outcome = run_case(plan, number, limit, seen)
        pipe.send((number, *outcome, time.process_time() - began))
    pipe.close()


def run(plan: Plan, jobs: int, limit: float, scratch: Path) -> dict[str, Any]:
    """All cases in ``jobs`` processes; prints findings, returns the summary."""
    context = multiprocessing.get_context(
        "fork"
    )  # importing torch takes seconds, and a dead worker is replaced
    began, counts, slowest = time.perf_counter(), {"loaded": 0, "refused": 0, "finding": 0}, 0.0
    ways: set[str] = set()
    left = {job: list(range(len(plan)))[job::jobs] for job in range(jobs)}
    workers: dict[Connection, tuple[int, Any]] = {}

    def start(job: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=work, args=(plan, left[job], limit, scratch / f"worker{job}", theirs)
        )
        process.start()
        theirs.close()
        workers[ours] = (job, process)

    for job in left:
        start(job)
    while workers:
        for pipe in wait(list(workers)):
            job, process = workers[pipe]  # type: ignore[index]
            try:
                number, outcome, words, seconds = pipe.recv()  # type: ignore[union-attr]
                left[job].remove(number)
                slowest = max(slowest, seconds)
            except EOFError:
                process.join()
                del workers[pipe]  # type: ignore[arg-type]
                if not left[job]:
                    continue
                number, outcome = left[job].pop(0), "finding"
                original, _ = plan.case(number)
                words = (
                    f"case {number} ({original.name}, {original.target}): died or hung: {process.exitcode}"
                )
                start(job)
            counts[outcome] += 1
            if outcome == "finding":
                print(words, flush=True)
            elif words:
                ways.add(words)
    return {
        "checkpoints": plan.counts[0],
        "media": plan.counts[1],
        "seed": plan.seed,
        **{name: counts[name] for name in ("loaded", "refused")},
        "findings": counts["finding"],
        "ways": len(ways),
        "slowest_seconds": round(slowest, 2),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=20_000)
    parser.add_argument("--media", type=int, default=5_000)
    parser.add_argument("--of", default="", help="only files whose name has this text, such as VAR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, default=5.0, help="seconds of the processor that one input may take"
    )
    parser.add_argument("--only", type=int, help="repeat one case, with its traceback; its file stays")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="narcli-fuzz-") as folder:
        scratch = Path(folder)
        plan = Plan(given.checkpoints, given.media, given.seed, scratch, given.of)
        if given.only is None:
            summary = run(plan, given.jobs, given.limit, scratch)
            print(json.dumps(summary))
            return int(summary["findings"] > 0)
        original, data = plan.case(given.only)
        kept = Path(tempfile.mkdtemp(prefix=f"narcli-fuzz-{given.only}-"))
        for name, content in original.files.items():
            (kept / name).write_bytes(data if name == original.target else content)
        print(f"{original.name}: {kept / original.target}", flush=True)
        os.chdir(kept)
        try:
            original.read(kept, kept / original.target)
        except NarError as error:
            print(f"refused: {error.message}")
        else:
            print("loaded")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
