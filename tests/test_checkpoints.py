"""Containers, what a file is, strict loading, and narcli's own format."""

import argparse
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from narcli.checkpoints import load, torch_files
from narcli.checkpoints.config import read_config
from narcli.checkpoints.containers import read_tensors
from narcli.checkpoints.convert import convert
from narcli.checkpoints.formats.families import identify
from narcli.checkpoints.formats.transformer import VIDEO_HEADS, released_names
from narcli.checkpoints.formats.vq import FORMAT as VQ
from narcli.checkpoints.load import load_tokenizer, load_transformer, transformer_config
from narcli.checkpoints.save import save_model
from narcli.errors import CheckpointError, MemoryLimitError, UsageError
from narcli.models.blocks import TransformerConfig
from narcli.models.larp import LARPTokenizer
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.rules import check
from narcli.rules import whole as whole_number

DATA = Path(__file__).parent / "data"
GOLDEN = {"c2i": "c2i.pt", "t2i": "t2i.pt", "c2v": "c2v.pth"}


@pytest.fixture
def released(tmp_path):
    """Copies a golden file and its config.json beside it."""

    def copy(name):
        shutil.copy(DATA / f"{name}.json", tmp_path / "config.json")
        return Path(shutil.copy(DATA / GOLDEN.get(name, f"{name}.pt"), tmp_path))

    return copy


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    config = TransformerConfig((4, 4), 64, 2, 4, 96, 64, num_classes=5)
    model = NARTransformer(config)
    model.init_weights()
    return model


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(1)
    return VQTokenizer(VQConfig(32, (1, 2), 1, 32, 96, 8, patch=2))


def refused(path, load=load_transformer, **options):
    with pytest.raises(CheckpointError) as caught:
        load(path, **options)
    error = caught.value
    assert error.exit_code == 4 and str(path.parent) in error.message and "\n" not in error.message
    return f"{error.message} {error.hint}"


def tensors_of(name):
    return read_tensors(DATA / GOLDEN[name])


# --- released files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grid", "condition"),
    [("c2i", (4, 4), "class"), ("t2i", (4, 4), "text"), ("c2v", (2, 4, 4), "class")],
)
def test_sizes_come_from_shapes_and_config(released, name, grid, condition):
    model = load_transformer(released(name))
    c = model.config
    assert (c.grid, c.condition, c.dim, c.layers, c.heads) == (grid, condition, 64, 3, 4)
    assert (c.vocab_size, c.ffn_dim, c.extra_tokens, model.training) == (64, 192, 0, False)
    assert c.position == ("absolute" if name == "c2v" else "rotary")
    assert c == transformer_config(DATA / GOLDEN[name], config=DATA / f"{name}.json")


def test_every_tensor_arrives_under_its_new_name(released):
    model, old = load_transformer(released("c2v")), tensors_of("c2v")
    state = model.state_dict()
    names = released_names(VIDEO_HEADS, 5)
    assert {names[name] for name in old} == state.keys()
    for name, tensor in old.items():
        assert torch.equal(state[names[name]], tensor)
    assert names["layers.4.feed_forward.w3.weight"] == "layers.4.ffn.up.weight"
    assert names["output_B.weight"] == "heads.back.output.weight" and names["abs_pe"] == "position_embedding"


def test_conversion_of_number_formats_and_no_copy_without(released):
    path = released("c2i")
    model = load_transformer(path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    kept = load_transformer(path, dtype=None)
    storages = {p.untyped_storage().data_ptr() for p in kept.parameters()}
    size = path.stat().st_size
    assert max(storages) - min(storages) < size  # all within one map of the file


def test_loading_leaves_the_file_as_it_is_even_when_weights_change(released):
    path = released("c2i")
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_transformer(path).parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_without_config_the_released_models_sizes_are_assumed(tmp_path):
    assert transformer_config(DATA / "c2i.pt").grid == (16, 16)
    assert transformer_config(DATA / "c2i.pt", grid=(4, 4)).grid == (4, 4)
    assert transformer_config(DATA / "c2i.pt").head_dim == 64
    assert "does not say its token grid" in refused(DATA / "c2v.pth")
    tensors = tensors_of("c2v") | {"abs_pe": torch.zeros(1, 1025, 64)}
    torch.save({"model": {"sd": tensors}}, tmp_path / "long.pt")
    assert transformer_config(tmp_path / "long.pt").grid == (4, 16, 16)


@pytest.mark.parametrize("wrap", ["model", "module", "state_dict", "top", "sd", "shadow"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_all_places_where_tensors_may_be(tmp_path, wrap, suffix):
    tensors = tensors_of("c2i")
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    elif wrap == "top":
        torch.save(tensors, path)
    elif wrap == "shadow":
        torch.save({"ema": {"decay": 0.9, "shadow": tensors}}, path)
    elif wrap == "sd":
        torch.save({"model": {"name": "x", "args": {}, "sd": tensors}, "epoch": 3}, path)
    else:
        torch.save({wrap: tensors, "steps": 7}, path)
    assert load_transformer(path).config.layers == 3


def test_old_containers_without_zip_load_too(tmp_path):
    torch.save({"model": tensors_of("c2i")}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_transformer(tmp_path / "old.pt").config.layers == 3


def test_training_checkpoints_with_plain_containers_load(tmp_path, monkeypatch):
    class EasyDict(dict):  # pickled as the real one, which need not be installed to read it
        pass

    module = types.ModuleType("easydict")
    module.EasyDict, EasyDict.__module__, EasyDict.__qualname__ = EasyDict, "easydict", "EasyDict"
    monkeypatch.setitem(sys.modules, "easydict", module)
    state = EasyDict(a=1)
    state.__dict__.update(a=1)
    content = {
        "model": tensors_of("c2i"),
        "harmless": [
            bytearray(b"x"),
            frozenset({1}),
            defaultdict(list, a=[1]),
            Path("a"),
            PureWindowsPath("b"),
        ],
        "args": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(x=[1])),
        "cfg": state,
        "rng": (np.random.default_rng(0).integers(0, 9, 5), np.float64(2.5), torch.ByteTensor([1, 2])),
    }
    torch.save(content, tmp_path / "t.pt")
    monkeypatch.delitem(sys.modules, "easydict")
    assert load_transformer(tmp_path / "t.pt").config.layers == 3
    assert "easydict" not in sys.modules


def test_the_tokenizer_sizes_are_inferred(tmp_path):
    assert load_tokenizer(DATA / "vq.pt").config == VQConfig(32, (1, 1), 1, 32, 96, 8)
    vq8 = VQConfig(32, (1, 2, 2, 4), 2, 64, 128, 8)
    state = VQTokenizer(vq8).state_dict() | {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state}, tmp_path / "vq8.pt")
    assert load_tokenizer(tmp_path / "vq8.pt").config == vq8
    assert "training-time" in VQ.dropped["quantize.codebook_used"]


# --- another model than expected -----------------------------------------------------------------


def test_tokenizer_and_model_are_not_taken_for_each_other():
    assert "image tokenizer, not a transformer" in refused(DATA / "vq.pt")
    assert "`model`" in refused(DATA / "c2i.pt", load_tokenizer)
    assert "video tokenizer (LARP)" in refused(DATA / "larp.safetensors", load_tokenizer)
    assert "video tokenizer (LARP)" in refused(DATA / "larp.safetensors")


def test_models_of_another_kind_are_refused():
    assert "from text" in refused(DATA / "t2i.pt", kind="image")
    assert "makes images of classes" in refused(DATA / "c2i.pt", kind="video")
    assert "makes videos" in refused(DATA / "c2v.pth", kind="image", grid=(2, 4, 4))


def test_other_families_are_described_by_their_tensors():
    assert identify(["shared.weight"]).words == "a T5 text encoder"
    assert "unet.conv.weight" in identify(["unet.conv.weight", "zz"]).words
    assert identify([]).words == "empty"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("layers.1.attention.wo.weight"), "lacks 1 tensors: layers.1.attention.wo.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "has unexpected 1 tensors: extra"),
        (
            lambda t: t.update({"norm.weight": torch.zeros(3)}),
            "has misshapen 1 tensors: norm.weight (3,) instead of (64,)",
        ),
        (lambda t: [t.pop(f"layers.{i}.ffn_norm.weight") for i in range(4)], "and 1 more"),
        (lambda t: t.pop("output.weight"), "lacks output.weight"),
        (lambda t: t.update({"tok_embeddings.weight": torch.zeros(5)}), "expected 2 sizes"),
        (lambda t: t.update({"tok_embeddings.weight": torch.zeros(60, 64)}), "60 token embeddings for 64"),
        (lambda t: t.update({"norm.weight": torch.zeros(64, dtype=torch.int64)}), "non-float"),
    ],
)
def test_wrong_tensors_are_named_and_counted(tmp_path, change, expected):
    tensors = tensors_of("c2i")
    change(tensors)
    torch.save({"model": tensors}, tmp_path / "x.pt")
    assert expected in refused(tmp_path / "x.pt")


# --- files that are something else ---------------------------------------------------------------


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (Path(self.target), "owned")


class EvilEval:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return eval, (f"open({str(self.target)!r}, 'w').write('owned')",)


@pytest.mark.parametrize("evil", [Evil, EvilEval])
@pytest.mark.parametrize("save", ["torch", "old", "pickle", "inside"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, evil, save):
    path, target = tmp_path / "model.pt", tmp_path / "owned.txt"
    content = {"model": tensors_of("c2i"), "extra": evil(target)}
    match save:
        case "torch":
            torch.save(content, path)
        case "old":
            torch.save(content, path, _use_new_zipfile_serialization=False)
        case "pickle":
            path.write_bytes(pickle.dumps(evil(target), protocol=2))
        case "inside":
            torch.save({"model": tensors_of("c2i"), "args": argparse.Namespace(x=evil(target))}, path)
    said = refused(path)
    assert "nothing was run" in said and "asks to run" in said
    assert not target.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt"}  # nothing left behind


@pytest.mark.parametrize(
    "call", ["posix.system", "builtins.exec", "torch.hub.load", "numpy.load", "os.popen"]
)
def test_calls_that_are_not_containers_are_refused_by_name(tmp_path, call):
    module, name = call.rsplit(".", 1)
    code = f"c{module}\n{name}\n(X\x04\x00\x00\x00truetR.".encode()
    (tmp_path / "x.pt").write_bytes(b"\x80\x02" + code)
    assert name in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n  <html lang='en'>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs pointer"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (b"\x89HDF\r\n", "not a PyTorch"),
        (b"hello, this is a text", "not a checkpoint"),
        (b"\x80\x02", "damaged"),
        (bytes(1000), "not a checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, content, expected, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    said = refused(path).replace(str(path), "")
    assert expected in said or (suffix == ".safetensors" and "safetensors" in said)


@pytest.mark.parametrize("part", [0.0001, 0.3, 0.9, 0.999])
def test_truncated_files_are_called_cut_off(tmp_path, part):
    for source in ("c2i.pt", "c2v.pth", "larp.safetensors"):
        data = (DATA / source).read_bytes()
        path = tmp_path / source
        path.write_bytes(data[: int(len(data) * part) + 8])
        assert "cut off" in refused(path)


def test_missing_files_and_folders_without_models(tmp_path):
    assert "no such file" in refused(tmp_path / "none.pt")
    (tmp_path / "folder").mkdir()
    assert "holds nothing" in refused(tmp_path / "folder")
    for name in ("a.pt", "b.pt"):
        shutil.copy(DATA / "c2i.pt", tmp_path / "folder" / name)
    assert "a.pt, b.pt" in refused(tmp_path / "folder")
    (tmp_path / "folder" / "b.pt").unlink()
    assert load_transformer(tmp_path / "folder").config.layers == 3  # a repository as it was downloaded


def test_archives_that_pytorch_did_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one that PyTorch wrote" in refused(tmp_path / "x.pt")
    with zipfile.ZipFile(DATA / "c2i.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert "compression" in refused(tmp_path / "y.pt")


def test_a_small_file_cannot_claim_large_tensors(tmp_path):
    huge = torch.zeros(1).expand(2**20, 2**12)
    torch.save({"model": {"tok_embeddings.weight": huge}}, tmp_path / "x.pt")
    assert "does not hold" in refused(tmp_path / "x.pt")
    one = torch.zeros(1000)
    torch.save({"model": {f"layers.{i}.norm": one[i:] for i in range(1000)}}, tmp_path / "y.pt")
    assert "does not hold" in refused(tmp_path / "y.pt")
    torch.save({"model": {"tok_embeddings.weight": torch.empty(4, 4, device="meta")}}, tmp_path / "z.pt")
    assert "does not hold" in refused(tmp_path / "z.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_tensors_are_one_view(tmp_path, zipped):
    tied = torch.randn(1000, 8)
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    torch.save(dict.fromkeys(names, tied), tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "x.bin")
    assert list(found) == list(names) and all(torch.equal(tensor, tied) for tensor in found.values())
    assert len({tensor.data_ptr() for tensor in found.values()}) == 1


def test_a_shortage_of_memory_is_not_called_damage(monkeypatch):
    monkeypatch.setattr(torch_files, "_find_tensors", lambda *_: bytearray(2**62))
    with pytest.raises(MemoryLimitError, match=r"c2i\.pt could not be read"):
        read_tensors(DATA / "c2i.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_compressed_archive_is_called_packed_again(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", method) as archive:
        archive.writestr("x/data.pkl", bytes(10_000))
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[40:60] = b"\xff" * 20
    (tmp_path / "x.pt").write_bytes(data)
    assert "packed again with compression" in refused(tmp_path / "x.pt")


def test_thousands_of_layers_are_not_built(tmp_path):
    tensors = tensors_of("c2i") | {f"layers.{i}.x": torch.zeros(1) for i in range(3000)}
    torch.save({"model": tensors}, tmp_path / "x.pt")
    assert "layers is 2999, expected a whole number from 1 to 1000" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_far_more_than_a_model_is_not_called_damaged(tmp_path, zipped):
    content = {"model": tensors_of("c2i"), "losses": list(range(600_000))}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    said = refused(tmp_path / "x.pt")
    assert "holds more than 524,288 values besides its tensors. Save the model alone" in said


def test_content_without_tensors_is_described(tmp_path):
    torch.save({"model": {"name": "x"}, "epoch": 3}, tmp_path / "x.pt")
    assert "model, epoch instead of tensors" in refused(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "y.pt")
    assert "a list instead of tensors" in refused(tmp_path / "y.pt")


# --- config.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"dim": 128}, "dim is 128, but the tensors say 64"),
        ({"n_layer": 4}, "n_layer is 4, but the tensors say 3"),
        ({"n_head": 3}, "3 attention heads cannot share a width of 64"),
        ({"n_head": "4"}, 'n_head is "4", expected a whole number from 1 to 1024'),
        ({"n_head": True}, "n_head is true"),
        ({"head_dim": 10}, "cannot share"),
        ({"n_head": 4, "head_dim": 32}, "head_dim is 32"),
        ({"grid": [4]}, "grid 4 does not fit the tensors, expected 2 axes"),
        ({"grid": [4, 0]}, "grid is [4, 0], expected a list of 1 to 3"),
        ({"grid": [4096, 4096]}, "product of at most 65536"),
        ({"grid": "4x4"}, 'grid is "4x4"'),
        ({"num_classes": 1000}, "num_classes is 1000, but the tensors say 10"),
        ([1], "expected an object"),
    ],
)
def test_every_stated_value_is_checked(tmp_path, said, expected):
    path = Path(shutil.copy(DATA / "c2i.pt", tmp_path / "c2i.pt"))
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert expected in refused(path)


def test_config_files_that_are_not_json(tmp_path):
    path = Path(shutil.copy(DATA / "c2i.pt", tmp_path / "c2i.pt"))
    for content in (
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"dim": ' + b"1" * 5000 + b"}",
        b"{}" + b" " * 2**21,
    ):
        (tmp_path / "config.json").write_bytes(content)
        refused(path)


def test_a_value_nested_too_deeply_to_be_shown_is_refused(tmp_path):
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CheckpointError, match="n_head is a deeply nested list, expected a whole number"):
        check(tmp_path, "", {"n_head": whole_number(1, 2)}, {"n_head": value})


def test_unknown_keys_beside_a_released_file_do_not_matter(released, tmp_path):
    path = released("c2i")
    said = json.loads((tmp_path / "config.json").read_text()) | {"gpt_model": "GPT-B", "kind": "c2i"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert load_transformer(path).config.heads == 4


# --- video tokenizers ----------------------------------------------------------------------------

VQ_ARGS = "bottleneck.args.regularizer.args"


@pytest.fixture
def larp_files(tmp_path):
    """Writes the golden LARP with changes: (change of config, change of tensors) -> the weights file."""

    def write(config=(), tensors=()):
        said = json.loads((DATA / "larp.config.json").read_text())
        for path, value in dict(config).items():
            *outer, last = path.split(".")
            part = said
            for key in outer:
                part = part[key]
            part[last] = value
        state = load_file(DATA / "larp.safetensors") | dict(tensors)
        save_file({name: t for name, t in state.items() if t is not None}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(said))
        return tmp_path / "model.safetensors"

    return write


def test_larps_prior_is_skipped_by_name_and_nothing_else(larp_files):
    tokenizer = load_tokenizer(larp_files(tensors={"prior_model.layers.0.weight": torch.ones(3)}))
    assert isinstance(tokenizer, LARPTokenizer) and tokenizer.config.decoder_depth == 2
    for name in ("prior.weight", "my_prior_model.weight", "decoder.prior_model.weight"):
        said = refused(larp_files(tensors={name: torch.ones(3)}), load_tokenizer)
        assert f"has unexpected 1 tensors: {name}" in said
    said = refused(larp_files(tensors={"bottleneck.in_linear.bias": None}), load_tokenizer)
    assert "lacks 1 tensors: bottleneck.in_linear.bias" in said


def test_the_epsilon_of_larps_norms_is_a_field_of_its_config(larp_files, tmp_path):
    path = larp_files({"block_norm_eps": 1e-5})
    tokenizer = load_tokenizer(path)
    assert {block.norm1.eps for block in tokenizer.decoder.blocks} == {1e-5}
    assert tokenizer.final_layer.norm_final.eps == 1e-6
    convert(path, tmp_path / "converted")
    assert load_tokenizer(tmp_path / "converted").config.block_norm_eps == 1e-5


def test_a_prior_is_larps_alone(tmp_path, vq):
    torch.save({"model": vq.state_dict() | {"prior_model.weight": torch.ones(3)}}, tmp_path / "vq.pt")
    assert "has unexpected 1 tensors: prior_model.weight" in refused(tmp_path / "vq.pt", load_tokenizer)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"frame_num": 8}, "8 frames of 16 pixels are 16 patches of the encoder, but the tensors say 8"),
        ({"input_size": 32}, "4 frames of 32 pixels are 32 patches of the encoder, but the tensors say 8"),
        ({"decoder_patch_size": 4}, "are 32 patches of the decoder, but the tensors say 8"),
        ({"patch_size": 4}, "patch_size is 4, but the tensors say 8"),
        ({"bottleneck_token_num": 16}, "bottleneck_token_num is 16, but the tensors say 8"),
        ({"bottleneck.args.bottleneck_dim": 16}, "bottleneck_dim is 16, but the tensors say 8"),
        ({f"{VQ_ARGS}.codebook_size": 65}, "codebook_size is 65, but the tensors say 64"),
        ({f"{VQ_ARGS}.l2_normalized": False}, "l2_normalized is false, expected true"),
        ({"bottleneck.args.regularizer": "fsq"}, "the bottleneck has no regularizer"),
        ({"encoder_depth": 3}, "encoder_depth is 3, but the tensors say 2"),
        ({"decoder_hidden_size": 64}, "decoder_hidden_size is 64, but the tensors say 48"),
        ({"decoder_num_heads": 5}, "5 decoder heads cannot share a width of 48"),
        ({"frame_num": "4"}, 'frame_num is "4", expected a whole number'),
        ({"use_decoder_patch_query_token_type_embed": False}, "is false, but the tensors say true"),
        ({"transformer_name": "transformer_encoder_fused"}, "transformer_encoder_fused"),
        ({"block_norm_eps": 0}, "block_norm_eps is 0, expected a number"),
    ],
)  # fmt: skip
def test_a_larp_config_that_does_not_fit_its_tensors_is_refused_in_one_sentence(larp_files, config, expected):
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(larp_files(config))
    assert expected in caught.value.message and "config.json" in caught.value.message
    assert len(caught.value.message) < 200


def test_larp_needs_its_config(larp_files):
    path = larp_files()
    path.with_name("config.json").write_text('{"ch": 128}')
    assert "ch does not belong to a LARP tokenizer" in refused(path, load_tokenizer)
    path.with_name("config.json").unlink()
    assert "without the config.json" in refused(path, load_tokenizer)


def test_a_clip_is_the_slices_that_its_stacked_frames_are(tmp_path):
    torch.manual_seed(2)
    clips = VQTokenizer(VQConfig(32, (1, 2), 1, 32, 96, 8, patch=2, frames=4)).eval()
    video = torch.rand(2, 3, 12, 16, 24) * 2 - 1
    with torch.no_grad():
        codes = clips.encode(video)
        assert codes.shape == (2, 3 * 4 * 6)
        for t in range(3):  # a slice depends on its own frames only, and its cells are in raster order
            one = clips.encode(video[:, :, 4 * t : 4 * t + 4])
            assert torch.equal(codes.view(2, 3, -1)[:, t], one)
        decoded = clips.decode(codes, (3, 4, 6))
        assert decoded.shape == video.shape and clips.config.clip_size((3, 4, 6)) == (12, 16, 24)
        last = clips.decode(codes.view(2, 3, -1)[:, 2], (1, 4, 6))
        torch.testing.assert_close(decoded[:, :, 8:], last)
    # Frame by frame of the stack: a decoder that gives the channels of one frame gives that frame.
    with torch.no_grad():
        clips.decoder.conv_out.weight.zero_()
        clips.decoder.conv_out.bias.copy_(torch.arange(3 * 4).repeat_interleave(4))
        stacked = clips.decode(codes, (3, 4, 6))
    assert stacked[0, :, :, 0, 0].T[:4].flatten().tolist() == list(range(12))

    folder = save_model(tmp_path / "t", tokenizer=clips)
    assert read_config(folder / "config.json").kind == "video-tokenizer"
    assert load_tokenizer(folder).config == clips.config


def test_an_older_config_without_frames_is_of_images(tmp_path, vq):
    folder = save_model(tmp_path / "t", tokenizer=vq)
    said = json.loads((folder / "config.json").read_text())
    del said["tokenizer"]["frames"]
    (folder / "config.json").write_text(json.dumps(said))
    assert load_tokenizer(folder).config == vq.config and vq.config.frames == 1


# --- narcli's own format -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_saved_model_comes_back(tmp_path, small, vq, dtype):
    folder = save_model(
        tmp_path / "deep" / "tiny",
        transformer=small,
        tokenizer=vq,
        classes=["a", "b", "c", "d", "e"],
        defaults={"cfg_scale": 2.0, "top_k": 0},
        dtype=dtype,
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.safetensors",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    model, tokenizer = load_transformer(folder, kind="image"), load_tokenizer(folder)
    assert model.config == small.config and tokenizer.config == vq.config
    for old, new in ((small, model), (vq, tokenizer)):
        for name, tensor in old.state_dict().items():
            assert torch.equal(new.state_dict()[name], tensor.to(dtype or tensor.dtype).float())
    said = read_config(folder / "config.json")
    assert (said.kind, said.name, said.classes) == ("image", "tiny", ("a", "b", "c", "d", "e"))
    assert said.defaults == {"cfg_scale": 2.0, "top_k": 0}
    assert load_transformer(folder / "model.safetensors").config == small.config


def test_a_folder_may_hold_a_tokenizer_only(tmp_path, vq):
    folder = save_model(tmp_path / "t", tokenizer=vq)
    assert read_config(folder / "config.json").kind == "image-tokenizer"
    assert load_tokenizer(folder).config == vq.config
    assert "has no model.safetensors" in refused(folder)


def test_other_folders_are_never_overwritten(tmp_path, vq, small):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        save_model(tmp_path, tokenizer=vq, overwrite=True)
    folder = save_model(tmp_path / "t", tokenizer=vq)
    with pytest.raises(UsageError, match="holds a model already"):
        save_model(folder, tokenizer=vq)
    save_model(folder, transformer=small, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UsageError, match="needs a transformer or a tokenizer"):
        save_model(tmp_path / "u")


def test_what_cannot_be_read_back_is_not_written(tmp_path, small):
    with pytest.raises(CheckpointError, match="cfg_scale"):
        save_model(tmp_path / "t", transformer=small, defaults={"cfg_scale": -1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "narcli.model/2"}, "expected 'narcli.model/1'"),
        ({"kind": "audio"}, 'kind is "audio"'),
        ({"surprise": 1}, "surprise is not known"),
        ({"classes": "birds"}, "classes"),
        ({"classes": [1]}, "classes"),
        ({"defaults": {"top_p": 0}}, "defaults.top_p is 0"),
        ({"defaults": {"cfg_scale": float("nan")}}, "defaults.cfg_scale is NaN"),
        ({"transformer": {"layers": 10**9}}, "transformer.layers is 1000000000"),
        ({"transformer": {"layers": 3}}, "layers is 3, but the tensors say 2"),
        ({"transformer": {"colour": 3}}, "transformer.colour is not known"),
        ({"transformer": 3}, "transformer is 3, expected an object"),
        ({"tokenizer": {"ch_mult": [1] * 9}}, "tokenizer.ch_mult"),
    ],
)
def test_lies_in_a_narcli_config_are_found(tmp_path, small, change, expected):
    folder = save_model(tmp_path / "m", transformer=small)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | change))
    assert expected in refused(folder)


def test_a_damaged_part_is_named(tmp_path, small):
    folder = save_model(tmp_path / "m", transformer=small)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("heads.down.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    assert "lacks 1 tensors: heads.down.norm.weight" in refused(folder)


# --- conversion ----------------------------------------------------------------------------------


def test_larp_is_converted_alone_and_with_its_model(tmp_path, larp):
    model, tokenizer = larp
    alone = convert(tokenizer, tmp_path / "alone")
    assert read_config(alone / "config.json").kind == "video-tokenizer"
    both = convert(model, tmp_path / "both", tokenizer=tokenizer)
    said = read_config(both / "config.json")
    assert (said.kind, said.classes) == ("video", "ucf101")
    expected = load_file(DATA / "larp.expected.safetensors")
    with torch.no_grad():
        for folder in (alone, both):
            again = load_tokenizer(folder).decode(expected["codes"])
            torch.testing.assert_close(again, expected["decoded"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_converted_model_is_the_same_model(tmp_path, released, name):
    source = released(name)
    folder = convert(source, tmp_path / "out")
    old, new = load_transformer(source), load_transformer(folder)
    assert new.config == old.config
    assert all(torch.equal(new.state_dict()[k], v) for k, v in old.state_dict().items())


def test_conversion_takes_a_tokenizer_and_a_number_format(tmp_path, released):
    folder = convert(released("c2i"), tmp_path / "out", tokenizer=DATA / "vq.pt", dtype=torch.float16)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert load_tokenizer(folder).config.codebook_size == 96
    again = convert(folder, tmp_path / "again")
    assert (again / "tokenizer.safetensors").is_file()
    assert [read_config(made / "config.json").name for made in (folder, again)] == ["out", "again"]
    alone = convert(DATA / "vq.pt", tmp_path / "alone")
    assert read_config(alone / "config.json").kind == "image-tokenizer"
    second = convert(alone, tmp_path / "second", dtype=torch.float16)
    assert {p.name for p in second.iterdir()} == {"config.json", "tokenizer.safetensors"}
    assert load_tokenizer(second).config == load_tokenizer(alone).config
    with pytest.raises(UsageError, match="tokenizer already"):
        convert(alone, tmp_path / "x", tokenizer=DATA / "vq.pt")
    with pytest.raises(UsageError, match="tokenizer already"):
        convert(DATA / "vq.pt", tmp_path / "x", tokenizer=DATA / "vq.pt")


def test_conversion_gives_released_models_the_settings_of_the_released_scripts(tmp_path, released):
    for name, scale in (("c2i", 4.0), ("c2v", 1.25)):
        folder = convert(released(name), tmp_path / name)
        assert read_config(folder / "config.json").defaults["cfg_scale"] == scale
    config = json.loads((tmp_path / "c2i" / "config.json").read_text())
    del config["defaults"]
    (tmp_path / "c2i" / "config.json").write_text(json.dumps(config))  # narcli's own: it says all there is
    again = convert(tmp_path / "c2i", tmp_path / "again")
    assert read_config(again / "config.json").defaults == {}


# --- hostile and unusual files -------------------------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def described(numel, offset, size, stride):
    """Instructions for {"model": {"norm.weight": a tensor}}."""
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + whole(numel) + b"tQ"
    )
    shape = b"(" + b"".join(map(whole, size)) + b"t(" + b"".join(map(whole, stride)) + b"t"
    rest = b"\x89ccollections\nOrderedDict\n)RtR"
    name = b"}" + text("model") + b"}" + text("norm.weight")
    return name + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + shape + rest + b"ss."


def with_program(path, program):
    """The golden file with another pickle."""
    with zipfile.ZipFile(DATA / "c2i.pt") as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            ours = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, b"\x80\x02" + program if ours else old.read(entry))
    return path


DOUBLING = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(100))
PAIRS = b"](" + b"K\0K\0\x86" * 60_000 + b"eq\0" + b"ccollections\nOrderedDict\nq\1"
LIES = {
    "dictionary made of a list again and again": PAIRS + b"h\1h\0\x85R" * 60_000 + b".",
    "dictionary in a subclass": PAIRS
    + b"h\0\x85q\2ctorch._tensor\n_rebuild_from_type_v2\nq\3"
    + b"h\3h\1Nh\2\x87R" * 60_000
    + b".",
    "long number as a key": b"\x8b"
    + struct.pack("<i", 2**23)
    + b"\1" * 2**23
    + b"q\0}"
    + b"h\0Ns" * 100_000
    + b".",
    "bytearray": b"}" + text("model") + b"cbuiltins\nbytearray\n" + whole(2**33) + b"\x85Rs.",
    "FloatTensor": b"}" + text("model") + b"ctorch\nFloatTensor\n" + whole(2**33) + b"\x85Rs.",
    "UntypedStorage": b"}" + text("model") + b"ctorch.storage\nUntypedStorage\n" + whole(2**33) + b"\x85Rs.",
    "bytes of 8 GiB": b"\x96" + struct.pack("<Q", 2**33) + b"xx.",
    "text of 8 GiB": b"\x8d" + struct.pack("<Q", 2**33) + b"xx.",
    "frame of 8 GiB": b"\x95" + struct.pack("<Q", 2**33) + b"N.",
    "memo of 2**31": b"Nr\xff\xff\xff\x7f.",
    "many lists": b"]" * (2**24 - 10) + b".",
    "doubling tuple": b"]" + DOUBLING + b".",
    "doubling key": b"}N" + DOUBLING + b"Ns.",
    "doubling name": b"N" + DOUBLING + text("x") + b"\x93.",
    "list in itself": b"}q\0" + text("model") + b"h\0s.",
    "number of 5000 digits": b"I" + b"9" * 5000 + b"\n.",
    "storage of 4 TiB": described(2**40, 0, [2**40], [1]),
    "storage of 2**62": described(2**62, 0, [4], [1]),
    "storage below 0": described(-1, 0, [4], [1]),
    "offset beyond": described(64, 2**40, [4], [1]),
    "offset below 0": described(64, -4, [4], [1]),
    "stride beyond": described(64, 0, [4], [2**40]),
    "stride below 0": described(64, 0, [4], [-1]),
    "strides of 0": described(64, 0, [2**20, 2**20], [0, 0]),
    "sizes that overflow": described(64, 0, [0, 2**62, 2**62], [0, 0, 0]),
    "64 axes": described(64, 0, [1] * 64, [0] * 64),
}
MEASURED = """
import json, sys
from pathlib import Path
from narcli.checkpoints.load import load_transformer
from narcli.errors import CheckpointError
from narcli.media.readers import read_tokens
def sizes():
    lines = [line.split() for line in open("/proc/self/status")]
    return {words[0]: int(words[1]) for words in lines if words[0].startswith("Vm")}
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = sizes()["VmRSS:"]
    try:
        read_tokens(path) if "tokens" in path.name else load_transformer(path)
        found[path.name] = None
    except CheckpointError as error:
        found[path.name] = (sizes()["VmHWM:"] - before) // 1024, error.message
print(json.dumps(found))
"""


def measured(folder):
    """What becomes of each file of a folder: (MiB that it took, message), None where it is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, folder], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_small_files_that_ask_for_gigabytes_are_refused_in_little_memory(tmp_path):
    for name, program in LIES.items():
        with_program(tmp_path / f"{name}.pt", program)
    header = b"{" + b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(70_000)
    ) + b"}"  # fmt: skip
    (tmp_path / "many.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with (tmp_path / "sparse.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 10**8) + b'{"')
        file.truncate(10**10)
    said = json.dumps({"tokens": {"dtype": "I32", "shape": [2**30], "data_offsets": [0, 2**32]}}).encode()
    with (tmp_path / "tokens.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(said)) + said)
        file.truncate(8 + len(said) + 2**32)
    with (tmp_path / "directory.pt").open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(2**31)
        file.seek(2**31)
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, 2**31 - 4, 4, 0))
    found = measured(tmp_path)
    assert len(found) == len(LIES) + 5
    assert None not in found.values(), [name for name, answer in found.items() if answer is None]
    assert {name: size for name, (size, _) in found.items() if size > 150} == {}
    assert "holds no model" in found["bytearray.pt"][1]  # which nothing was made of
    assert "a directory of more than" in found["directory.pt"][1]
    assert "1073741824 numbers" in found["tokens.safetensors"][1]


@pytest.mark.parametrize("zipped", [True, False])
def test_attributes_and_hooks_in_a_pickle_shadow_nothing(tmp_path, zipped):
    tensors, name = tensors_of("c2i"), "norm.weight"
    parameter = torch.nn.Parameter(tensors[name].clone())
    parameter.__dict__.update(shape=3, dtype=4, numel=5, is_floating_point=6, to=7, device="x")
    torch.save(
        {"model": tensors | {name: parameter}}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    hooked = tensors[name].clone().requires_grad_()
    hooked._backward_hooks = OrderedDict(x=1)
    torch.save({"model": tensors | {name: hooked}}, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    for path in (tmp_path / "a.pt", tmp_path / "b.pt"):
        found = read_tensors(path)[name]
        assert type(found) is torch.Tensor and not vars(found) and found._backward_hooks is None
        assert torch.equal(found, tensors[name]) and load_transformer(path).config.layers == 3


def test_attributes_of_a_dictionary_in_a_pickle_shadow_nothing(tmp_path):
    state = b"}" + text("items") + b"K\1s" + text("values") + b"K\2s" + text("keys") + b"K\3s"
    program = (
        b"ccollections\nOrderedDict\n)R" + text("model") + b"ccollections\nOrderedDict\n)R" + state + b"bs"
    )
    path = with_program(tmp_path / "x.pt", program + state + b"b.")
    assert "holds no model: model instead of tensors" in refused(path)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.eye(64).to_sparse(), "does not hold"),
        (torch.eye(64).to_sparse_csr(), "does not hold"),
        (torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8), "does not hold"),
        (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)]), "does not hold"),
        (torch.zeros(64, dtype=torch.complex64).conj().imag, "does not hold"),
        (torch.zeros(64, dtype=torch.complex64), "non-float"),
        (torch.zeros(64).to(torch.float8_e4m3fn), "non-float"),
        (torch.zeros(64, dtype=torch.bool), "non-float"),
        (torch.tensor(1.0), "misshapen"),
        (None, "holds no model"),
    ],
)
def test_tensors_that_are_no_plain_floats_are_refused(tmp_path, tensor, expected):
    torch.save({"model": tensors_of("c2i") | {"norm.weight": tensor}}, tmp_path / "x.pt")
    assert expected in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "name", [3, None, 1.5, (1, 2), b"x", "x" * 10**6, "a\0b", "\udc80", "\x1b[2J", "a\nb"]
)
def test_tensors_of_unusable_names_are_refused(tmp_path, name):
    torch.save({"model": tensors_of("c2i") | {name: torch.zeros(1)}}, tmp_path / "x.pt")
    assert "unusable name" in refused(tmp_path / "x.pt") and len(refused(tmp_path / "x.pt")) < 600


def test_views_come_out_dense_and_may_be_written_to(tmp_path):
    tensors = tensors_of("c2i")
    odd = {"norm.weight": torch.ones(1).expand(64), "medusa_norm.weight": torch.ones(128)[::2]}
    torch.save({"model": tensors | odd}, tmp_path / "x.pt")
    found = read_tensors(tmp_path / "x.pt")
    assert all(tensor.is_contiguous() for tensor in found.values())
    found["norm.weight"][0] = 2
    assert found["norm.weight"].tolist() == [2, *[1] * 63]


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nothing"])
@pytest.mark.parametrize("name", ["m.pt", "config.json", "model.safetensors"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, small, what, name):
    folder = save_model(tmp_path / "m", transformer=small)
    path = folder / name
    if name == "m.pt":
        shutil.rmtree(folder)
        folder.mkdir()
    path.unlink(missing_ok=True)
    match what:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "nothing":
            path.symlink_to("nowhere")
    said = refused(path if name == "m.pt" and what != "folder" else folder)
    assert {"pipe": "named pipe", "device": "is a device", "nothing": "no such file"}.get(
        what, "folder"
    ) in said


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "module." + name,
        lambda name: "_orig_mod." + name,
        lambda name: "_orig_mod.module." + name,
        lambda name: "module._orig_mod." + name,
        lambda name: "model." + name,
        lambda name: "_fsdp_wrapped_module." + name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda name: name.replace(".", "._checkpoint_wrapped_module.", 1),
        lambda name: "_forward_module." + name,
        lambda name: "_fpw_module.module." + name,
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_wrappers_of_training_are_taken_off_the_names(tmp_path, rename, suffix):
    for source, read in (("c2i.pt", load_transformer), ("vq.pt", load_tokenizer)):
        tensors = {rename(name): t.contiguous() for name, t in read_tensors(DATA / source).items()}
        path = tmp_path / f"{source[:2]}{suffix}"
        save_file(tensors, path) if suffix == ".safetensors" else torch.save({"model": tensors}, path)
        expected = read(DATA / source).state_dict()
        assert all(torch.equal(expected[name], t) for name, t in read(path).state_dict().items())


@pytest.mark.parametrize("place", ["model", "ema", ""])
def test_the_average_that_torch_keeps_loads(tmp_path, place):
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of("c2i").items()}
    averaged = {"n_averaged": torch.tensor(3), **tensors}
    torch.save({place: averaged} if place else averaged, tmp_path / "x.pt")
    assert load_transformer(tmp_path / "x.pt").config.layers == 3


def test_a_wrapper_on_some_names_only_is_refused(tmp_path):
    tensors = tensors_of("c2i")
    tensors["module.norm.weight"] = tensors.pop("norm.weight")
    torch.save({"model": tensors}, tmp_path / "x.pt")
    assert "module.norm.weight" in refused(tmp_path / "x.pt")
    both = tensors_of("c2i") | {"_orig_mod.norm.weight": torch.zeros(64)}
    torch.save({"model": both}, tmp_path / "y.pt")
    assert "with and without the wrappers" in refused(tmp_path / "y.pt")


def test_of_a_model_and_its_average_the_model_is_used_and_that_is_said(tmp_path):
    tensors = tensors_of("c2i")
    average = {name: torch.zeros_like(t) for name, t in tensors.items()}
    torch.save({"ema": average, "model": tensors}, tmp_path / "both.pt")
    assert torch.equal(read_tensors(tmp_path / "both.pt")["norm.weight"], tensors["norm.weight"])
    assert load.remark(tmp_path / "both.pt").endswith(
        "holds 'model' and 'ema'; 'model' is used, as by the released code."
    )
    torch.save({"ema": tensors, "steps": 3}, tmp_path / "ema.pt")
    assert load_transformer(tmp_path / "ema.pt").config.layers == 3
    assert load.remark(tmp_path / "ema.pt") == "" == load.remark(DATA / "c2i.pt")


@pytest.mark.parametrize(
    "names",
    [
        ("model-1-of-3.pt",),
        ("model_00001_of_00003.pt",),
        ("consolidated.00.pth", "consolidated.01.pth"),
        ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
    ],
)
def test_shards_by_other_names_are_called_that(tmp_path, names):
    for name in names:
        shutil.copy(DATA / "c2i.pt", tmp_path / name)
    for name in names:
        assert "is one shard of a model" in refused(tmp_path / name)
    assert "shard" in refused(tmp_path)


def test_one_shard_of_several_is_called_that(tmp_path):
    tensors = {name: t.contiguous() for name, t in tensors_of("c2i").items()}
    save_file(tensors, tmp_path / "model-00001-of-00003.safetensors")
    said = refused(tmp_path / "model-00001-of-00003.safetensors")
    assert "is one shard of a model in 3, number 1." in said
    save_file(tensors, tmp_path / "nar-00001-of-00001.safetensors")
    assert load_transformer(tmp_path / "nar-00001-of-00001.safetensors").config.layers == 3
    save_file(tensors, tmp_path / "a.safetensors")
    index = {"weight_map": {"norm.weight": "a.safetensors", "output.weight": "b.safetensors"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    assert "is one shard of a model in 2" in refused(tmp_path / "a.safetensors")
    for number in (2, 3):
        save_file(tensors, tmp_path / f"model-0000{number}-of-00003.safetensors")
    for name in ("nar-00001-of-00001.safetensors", "a.safetensors", "x.safetensors.index.json"):
        (tmp_path / name).unlink()
    assert "a model in 3 shards" in refused(tmp_path)
