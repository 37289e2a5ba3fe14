"""Text to image: the encoder, padding, the cache of encoded prompts, and the released code's tokens."""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import narcli
from narcli import encoding
from narcli.checkpoints import text_encoder
from narcli.checkpoints.convert import convert
from narcli.checkpoints.load import load_transformer
from narcli.checkpoints.text_encoder import Encoded, T5Encoder, check_encoder, left_pad
from narcli.encoding import PromptEncoder, cache_folder, prune, read_cached, write_cached
from narcli.errors import CheckpointError, UsageError
from narcli.hub.catalog import MODELS, Model
from narcli.hub.locate import locate
from narcli.hub.selection import Fetched
from narcli.hub.sizes import networks_of
from narcli.hub.sources import EncoderFiles, choose
from narcli.prompts import parse_prompt
from narcli.sampling import SamplingSettings, generate

DATA = Path(__file__).with_name("data")
GOLDEN = load_file(DATA / "t2i.expected.safetensors")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "cache_folder", lambda: tmp_path / "prompts")
    return tmp_path / "prompts"


@pytest.fixture(scope="session")
def flan(tmp_path_factory):
    """A tiny T5 with a decoder, in parts, with a tokenizer of words: saved as flan-t5-xl is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("flan")
    torch.manual_seed(2)
    sizes = T5Config(
        vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(sizes)
    for parameter in model.encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder, max_shard_size="20KB")
    pieces = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁apple", "▁", *"abcdefghijklmnopqrstuvwxyz,."]
    letters = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    letters.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"unk_token": "<unk>"}))
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="session")
def released(golden, tmp_path_factory):
    """The golden text model, and a tokenizer for its codes."""
    folder = tmp_path_factory.mktemp("t2i")
    shutil.copy(DATA / "t2i.pt", folder)
    shutil.copy(DATA / "t2i.json", folder / "config.json")
    return folder / "t2i.pt", golden[1]


def load(released, flan, **options):
    model, tokenizer = released
    return narcli.load(model, kind="text", tokenizer=tokenizer, text_encoder=flan, **options)


def reference(flan, texts: list[str], tokens: int) -> tuple[Tensor, Tensor]:
    """What the released code does: pad to the right, encode under the mask, flip features and mask, zero."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(flan)
    model = T5EncoderModel.from_pretrained(flan, dtype=torch.float32).eval()
    batch = tokenizer(texts, max_length=tokens, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = model(**batch).last_hidden_state
    mask = batch.attention_mask.bool()
    condition = torch.zeros_like(features)
    for row, (one, valid) in enumerate(zip(features, mask, strict=True)):
        condition[row, tokens - int(valid.sum()) :] = one[valid]
    return condition, ~mask.flip(1)


# --- the encoder ---------------------------------------------------------------------------------


def test_prompts_reach_the_transformer_as_in_the_released_code(flan):
    texts = ["a red apple", "a", "a red apple, and many more of them", "猫 x"]
    encoder = T5Encoder.load(flan, torch.float32)
    condition, padding = left_pad([encoder.encode(text, 7).features for text in texts], 7)
    expected, hidden = reference(flan, texts, 7)
    assert torch.equal(padding, hidden) and (~padding).sum(1).tolist()[:3] == [4, 2, 7]
    torch.testing.assert_close(condition, expected, rtol=1e-4, atol=1e-4)


def test_what_is_cut_is_told(flan, tiny_text):
    words = T5Encoder.load(flan)
    assert words.encode("a red apple", 4).dropped == ""
    assert words.encode("a red apple", 3).dropped == "apple"
    assert len(words.encode("a red apple", 3).features) == 3
    letters = T5Encoder.load(tiny_text / "text_encoder")
    assert letters.encode("naïve é", 5).dropped == "ve é"
    assert letters.encode("abc", 4).dropped == ""


def test_the_encoder_computes_in_bfloat16_unless_told(flan):
    assert T5Encoder.load(flan).encode("a", 7).features.dtype == torch.bfloat16
    assert {p.dtype for p in T5Encoder.load(flan, torch.float32).model.parameters()} == {torch.float32}


def damage_config(folder):
    (folder / "config.json").write_text("{")


def rename_type(folder):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"model_type": "bert"}))


def drop_part(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["encoder.final_layer_norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    from safetensors.torch import save_file

    for path in folder.glob("model-*.safetensors"):
        tensors = {k: v for k, v in load_file(path).items() if k != "encoder.final_layer_norm.weight"}
        save_file(tensors, path, {"format": "pt"})


def remove_part(folder):
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def cut_part(folder):
    part = sorted(folder.glob("model-*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:-100])


def remove_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def keep_spiece_only(folder):
    (folder / "tokenizer.json").rename(folder / "spiece.model")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_config, "no readable config.json"),
        (rename_type, "'bert', expected a T5"),
        (drop_part, "lacks 1 tensors, such as encoder.final_layer_norm.weight"),
        (remove_part, "cannot be loaded"),
        (cut_part, "cannot be loaded"),
        (remove_tokenizer, "has no tokenizer.json"),
        (keep_spiece_only, "has only spiece.model"),
    ],
)
def test_damaged_encoders_are_refused(flan, tmp_path, damage, says):
    folder = shutil.copytree(flan, tmp_path / "flan")
    damage(folder)
    with pytest.raises(CheckpointError, match=says):
        T5Encoder.load(folder)


#: What a folder may say to make transformers fetch or run something, or build something large.
NAMED = {"auto_map": {"AutoTokenizer": "x/y--z.T", "AutoModel": "x/y--z.M", "AutoConfig": "x/y--z.C"}}
CLAIMS = [
    *({key: value} for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
      for value in ("x/y", "x/y:fn", "paged|x/y", "flash_attention_3")),
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"quantization_config": {"quant_method": "fp8"}, "return_dict": False, "output_attentions": True},
    {"num_labels": 10**7, "chunk_size_feed_forward": 3, "torchscript": True, "is_decoder": True},
    {**NAMED, "name_or_path": "x/y", "_name_or_path": "x/y", "transformers_version": "99.0"},
]  # fmt: skip


@pytest.fixture
def alone(monkeypatch):
    """Nothing is connected to, and no optional package of transformers is imported."""
    import transformers.integrations.hub_kernels as hub_kernels

    def forbidden(*_, **__):
        raise AssertionError("something was fetched, or tried to be")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", forbidden)
    for name in ("kernels", "peft", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)  # an import fails


@pytest.mark.parametrize("claims", CLAIMS)
def test_nothing_that_an_encoder_names_is_fetched_or_run(flan, tmp_path, alone, claims):
    folder = shutil.copytree(flan, tmp_path / "flan")
    for name in ("config.json", "tokenizer_config.json"):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(said | claims))
    more = {"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd", "chat_template": "{{ 1 / 0 }}"}
    said = json.loads((folder / "tokenizer_config.json").read_text()) | more | NAMED
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "LlamaTokenizer"}))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y", "peft_type": "LORA"}')
    (folder / "generation_config.json").write_text('{"custom_generate": "x/y"}')
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    index = {"metadata": {}, "weight_map": {"shared.weight": "../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "modeling.py").write_text("raise SystemExit")
    expected = T5Encoder.load(flan, torch.float32).encode("a red apple", 9)
    found = T5Encoder.load(folder, torch.float32)
    assert torch.equal(found.encode("a red apple", 9).features, expected.features)
    assert found.model.config._attn_implementation in ("sdpa", "eager")
    check_encoder(folder)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"d_kv": [0]}, "d_kv is [0], expected a whole number"),
        ({"d_kv": "x" * 10**6}, "expected a whole number"),
        ({"d_kv": "x" * 2**21}, "larger than"),
        ({"num_heads": 10**7}, "num_heads is 10000000"),
        ({"d_model": float("inf")}, "d_model is Infinity"),
        ({"d_model": 10**300}, "d_model is 1000"),
        ({"d_model": True}, "d_model is true"),
        ({"d_model": 24.0}, "d_model is 24.0"),
        ({"d_model": None}, "lacks d_model"),
        ({"relative_attention_num_buckets": 10**9}, "relative_attention_num_buckets is 1000000000"),
        ({"relative_attention_num_buckets": 2}, "expected a whole number from 4"),
        ({"relative_attention_max_distance": 8}, "more than a quarter of the 32 buckets"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is NaN"),
        ({"feed_forward_proj": "gated-x/y"}, "feed_forward_proj"),
        ({"dense_act_fn": "relu"}, "dense_act_fn is 'relu'"),
        ({"model_type": ["t5"]}, "expected a T5"),
        ({"model_type": "\ud800"}, "expected a T5"),
    ],
)
def test_sizes_of_an_encoder_are_checked_before_anything_is_built(
    flan, tmp_path, monkeypatch, said, expected
):
    folder = shutil.copytree(flan, tmp_path / "flan")
    config = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.T5EncoderModel.__init__", lambda *_: pytest.fail("it was built"))
    model = Model("x", "text-encoder", path=folder)
    for load in (T5Encoder.load, check_encoder, lambda _: networks_of(Fetched(model, folder))):
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert expected in caught.value.message and len(caught.value.message) < 600


def test_a_device_in_place_of_an_encoder_is_called_that():
    device = locate(Model("zero", "text-encoder", path=Path("/dev/zero")))
    with pytest.raises(CheckpointError, match=r"/dev/zero is .*device"):
        EncoderFiles(device).folder()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
)
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_in_an_encoder_is_refused_at_once(flan, tmp_path, name, what):
    folder = shutil.copytree(flan, tmp_path / "flan")
    (folder / name).unlink(missing_ok=True)
    match what:
        case "pipe":
            os.mkfifo(folder / name)
        case "device":
            (folder / name).symlink_to("/dev/zero")
        case _:
            (folder / name).mkdir()
    with pytest.raises(CheckpointError, match="expected a file"):
        T5Encoder.load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 3}}, "replaces 'a' by 'aa'"),
        ({"normalizer": {"normalizers": [{"pattern": {"String": "a"}, "content": "aa"}]}}, "replaces 'a' by"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "ab?"}, "content": "abc"}}, "by 'abc'"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}}, "replaces ''"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}}, "than 12 steps"),
        ({"post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {},
          "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9}}, "4 pieces"),
    ],
)  # fmt: skip
def test_tokenizers_that_make_a_text_grow_are_refused(flan, tmp_path, monkeypatch, change, says):
    folder = shutil.copytree(flan, tmp_path / "flan")
    said = json.loads((folder / "tokenizer.json").read_text()) | change
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=says):
        T5Encoder.load(folder)


def charsmap(replacement):
    """sentencepiece's table in which "a" becomes another text: a search tree of 256 units, and the text."""
    units = [0] * 256
    units[0] = 0x80 << 10  # offset of the children: "a" is at 0x80 ^ 0x61
    units[0x80 ^ 0x61] = 1 << 10 | 1 << 8 | 0x61  # its label, and a leaf one place away
    return struct.pack("<257I", 1024, *units) + replacement + b"\0"


def test_a_table_of_characters_may_not_make_a_long_text_of_one(flan, tmp_path):
    def load(replacement):
        folder = shutil.copytree(flan, tmp_path / f"flan{len(replacement)}")
        said = json.loads((folder / "tokenizer.json").read_text())
        table = base64.b64encode(charsmap(replacement)).decode()
        said["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
        (folder / "tokenizer.json").write_text(json.dumps(said))
        return T5Encoder.load(folder)

    encoder = load(b"b")
    assert encoder.tokenizer("red a").input_ids == encoder.tokenizer("red b").input_ids
    load(b"b" * 256)
    with pytest.raises(CheckpointError, match="a character by 257 bytes, expected at most 256"):
        load(b"b" * 257)


def test_the_normalizer_of_a_t5_loads(flan, tmp_path):
    folder = shutil.copytree(flan, tmp_path / "flan")
    said = json.loads((folder / "tokenizer.json").read_text())
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    said["normalizer"] = {"type": "Sequence", "normalizers": [strip, spaces]}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    expected = T5Encoder.load(flan).encode("a red apple", 9).features
    assert torch.equal(T5Encoder.load(folder).encode("a red apple  ", 9).features, expected)


def test_a_tokenizer_without_an_unknown_token_is_refused(flan, tmp_path):
    folder = shutil.copytree(flan, tmp_path / "flan")
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"] = {"type": "WordLevel", "vocab": {"a": 3}, "unk_token": "none"}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="cannot read a prompt"):
        T5Encoder.load(folder).encode("red", 7)


@pytest.mark.parametrize("where", ["load", "encode"])
def test_a_panic_of_a_tokenizer_is_a_fault_of_its_file_and_an_interrupt_is_not(flan, monkeypatch, where):
    class PanicException(BaseException):  # as pyo3_runtime has it, which cannot be imported
        pass

    encoder = T5Encoder.load(flan)
    for error, expected in ((PanicException, CheckpointError), (KeyboardInterrupt, KeyboardInterrupt)):

        def fail(*_, error=error, **__):
            raise error("called unwrap")

        if where == "load":
            monkeypatch.setattr("narcli.checkpoints.t5.read_tokenizer", fail)
        else:
            monkeypatch.setattr(type(encoder.tokenizer), "__call__", fail)
        with pytest.raises(expected):
            T5Encoder.load(flan) if where == "load" else encoder.encode("a", 7)


def test_an_encoder_comes_back_from_its_folder(flan, tiny_text, tmp_path):
    for number, folder in enumerate((flan, tiny_text / "text_encoder")):
        first = T5Encoder.load(folder, None)
        first.save(tmp_path / f"{number}")
        second = T5Encoder.load(tmp_path / f"{number}", None)
        assert torch.equal(first.encode("a red é", 9).features, second.encode("a red é", 9).features)
        assert first.encode("a red é", 3).dropped == second.encode("a red é", 3).dropped
        assert second.model.shared.weight is second.model.encoder.embed_tokens.weight


# --- the pipeline --------------------------------------------------------------------------------


class Recorded:
    """In the encoder's place: the golden captions, whose tokens the released code told."""

    def __init__(self, *_):
        pass

    @classmethod
    def load(cls, *_):
        return cls()

    width = GOLDEN["caption_embeddings"].shape[2]

    def encode_all(self, texts, tokens):
        assert tokens == GOLDEN["caption_mask"].shape[1]
        rows = [int(text.split()[1]) for text in texts]
        return [Encoded(GOLDEN["caption_embeddings"][n, GOLDEN["caption_mask"][n] != 0]) for n in rows]


@pytest.mark.parametrize(
    ("scale", "interval"), [tuple(case) for case in json.loads((DATA / "t2i.json").read_text())["cfg"]]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_prompts_give_the_tokens_of_the_released_code(
    released, flan, monkeypatch, scale, interval, batch_size
):
    monkeypatch.setattr("narcli.checkpoints.text_encoder.T5Encoder", Recorded)
    pipe = load(released, flan, dtype="float32")
    results = pipe.images(
        prompts=["caption 0", "caption 1", "caption 2"], seed=0, batch_size=batch_size,
        cfg_scale=scale, cfg_interval=interval, temperature=0,
    )  # fmt: skip
    key = f"tokens.cfg{scale:g}" + (f"_interval{interval}" if interval >= 0 else "")
    assert torch.equal(torch.stack([result.tokens for result in results]), GOLDEN[key])


def test_from_a_prompt_to_a_picture(released, flan):
    prompts = ["A red apple", "a, bcd efg hij klm"]
    pipe = load(released, flan, dtype="float32")
    with pytest.warns(UserWarning, match=r"longer than the model takes.*dropped: '.*klm'"):
        results = pipe.images(prompts=prompts, seed=3, num=2)
    assert [(result.prompt, result.seed) for result in results] == [
        (prompt, seed) for prompt in prompts for seed in (3, 4)
    ]
    model = load_transformer(released[0])
    condition, padding = reference(flan, ["a red apple", prompts[1]], 7)
    rows = torch.tensor([0, 0, 1, 1])
    steps = generate(model, condition[rows], [3, 4, 3, 4], SamplingSettings(7.5), padding[rows])
    tokens = torch.empty(4, 16, dtype=torch.int64)
    for step in steps:
        tokens[:, list(step.cells)] = step.tokens
    assert torch.equal(torch.stack([result.tokens for result in results]), tokens)
    about = results[2].metadata
    assert about == json.loads(json.dumps(about))
    assert (about["prompt"], about["cleaned_prompt"]) == (prompts[1], prompts[1])
    assert about["dropped"].endswith("klm") and "dropped" not in results[0].metadata
    assert results[0].metadata["cleaned_prompt"] == "a red apple" and "class" not in about
    assert about["text_encoder"]["name"] == flan.name and about["text_encoder"]["dtype"] == "float32"
    with pytest.raises(AttributeError):
        _ = results[0].class_id


def test_a_prompt_gives_the_same_picture_in_any_batch(tiny_text):
    pipe = narcli.load(tiny_text)
    prompts = ["a red apple", "dog", "a prompt of words"]
    together = pipe.images(prompts=prompts, seed=5, num=2)
    for result in together:
        (alone,) = narcli.load(tiny_text).images(prompts=result.prompt, seed=result.seed)
        assert torch.equal(alone.tokens, result.tokens) and alone.metadata == result.metadata
    assert len({tuple(result.tokens.tolist()) for result in together}) == 6


def test_classes_and_prompts_are_for_their_models(tiny, tiny_text):
    with pytest.raises(UsageError, match="images of classes"):
        narcli.load(tiny).images(prompts=["a"])
    for arguments in ({"classes": [207]}, {}, {"classes": [1], "prompts": ["a"]}):
        with pytest.raises(UsageError, match="images from text"):
            narcli.load(tiny_text).images(**arguments)
    with pytest.raises(UsageError, match="has no text encoder"):
        choose("image", tiny, text_encoder=tiny_text / "text_encoder")
    with pytest.raises(CheckpointError, match="features of 24 numbers, and the model takes 16"):
        other = tiny_text.parent / "other"
        shutil.copytree(tiny_text / "text_encoder", other, dirs_exist_ok=True)
        said = json.loads((other / "config.json").read_text())
        narcli.load(tiny_text, text_encoder=_wider(other, said)).images(prompts=["a"])


def _wider(folder, said):
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(T5Config(**said | {"d_model": 24})).save_pretrained(folder)
    return folder


def test_a_converted_model_keeps_its_encoder(tiny_text, tmp_path):
    folder = convert(tiny_text, tmp_path / "half", dtype=torch.float16)
    stored = load_file(folder / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    (result,) = narcli.load(folder).images(prompts=["a red apple"], seed=1)
    assert result.metadata["text_encoder"]["name"] == "half"
    convert(tiny_text, folder, overwrite=True)  # it is one of ours


# --- the cache -----------------------------------------------------------------------------------


def test_a_prompt_that_was_encoded_loads_no_encoder(tiny_text, monkeypatch, cache):
    (first,) = narcli.load(tiny_text).images(prompts="A red apple", seed=1)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(T5Encoder, "load", lambda *_: pytest.fail("the encoder was loaded"))
    (again,) = narcli.load(tiny_text).images(prompts="a  RED apple", seed=1)  # cleaned, it is the same
    assert torch.equal(first.tokens, again.tokens)
    with pytest.raises(pytest.fail.Exception):
        narcli.load(tiny_text).images(prompts="a green apple", seed=1)
    with pytest.raises(pytest.fail.Exception):
        narcli.load(tiny_text, dtype="float32").images(prompts="a red apple", seed=1)


def test_another_encoder_has_entries_of_its_own(tiny_text, tmp_path, cache):
    narcli.load(tiny_text).images(prompts="a", seed=1)
    other = shutil.copytree(tiny_text, tmp_path / "other")
    path = other / "text_encoder" / "model.safetensors"
    from safetensors.torch import save_file

    save_file({name: -tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    narcli.load(other).images(prompts="a", seed=1)
    assert len(list(cache.iterdir())) == 2


def test_a_cut_prompt_is_told_of_again_and_not_used_where_more_fits(cache):
    write_cached("x", "bfloat16", "long", 4, Encoded(torch.ones(4, 8), "the rest"))
    assert read_cached("x", "bfloat16", "long", 4).dropped == "the rest"
    assert read_cached("x", "bfloat16", "long", 5) is None
    write_cached("x", "bfloat16", "short", 4, Encoded(torch.ones(2, 8)))
    assert torch.equal(read_cached("x", "bfloat16", "short", 9).features, torch.ones(2, 8))
    assert read_cached("x", "bfloat16", "short", 1) is None
    assert read_cached("y", "bfloat16", "short", 9) is None


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_damaged_entries_are_made_anew(tiny_text, cache, content):
    (first,) = narcli.load(tiny_text).images(prompts="a", seed=1)
    (path,) = cache.iterdir()
    whole = load_file(path)["features"].clone()
    path.write_bytes(content)
    (again,) = narcli.load(tiny_text).images(prompts="a", seed=1)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(load_file(path)["features"], whole)


def test_the_cache_is_bounded_and_the_oldest_go_first(cache):
    for number in range(6):
        write_cached("x", "bfloat16", str(number), 9, Encoded(torch.ones(2, 8)))
        os.utime(encoding.cached_path("x", "bfloat16", str(number)), (number, number))
    assert read_cached("x", "bfloat16", "0", 9)  # used again: not the oldest any more
    size = sum(path.stat().st_size for path in cache.iterdir())
    prune(size // 2)
    assert [bool(read_cached("x", "bfloat16", str(n), 9)) for n in range(6)] == [
        True,
        *[False] * 3,
        True,
        True,
    ]


def test_a_cache_that_cannot_be_written_is_done_without(tiny_text, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(encoding, "cache_folder", lambda: tmp_path / "file" / "prompts")
    assert narcli.load(tiny_text).images(prompts="a", seed=1)


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "narcli" in cache_folder().parts and cache_folder().name == "prompts"


def test_many_prompts_are_encoded_in_parts(tiny_text, monkeypatch):
    loaded = []
    original = T5Encoder.load
    monkeypatch.setattr(encoding, "CHUNK", 3)
    monkeypatch.setattr(T5Encoder, "load", lambda *args: loaded.append(1) or original(*args))
    pipe = narcli.load(tiny_text)
    prompts = [f"apple {n}" for n in (0, 1, 0, 2, 3, 4, 5, 6)]
    results = pipe.images(prompts=prompts, seed=1, batch_size=2)
    assert [result.prompt for result in results] == prompts
    assert len(loaded) == 3 and isinstance(pipe.encoder, PromptEncoder)  # 7 that differ, 3 at a time
    assert torch.equal(results[0].tokens, results[2].tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encoder.encode([parse_prompt("apple 0")])


def test_a_batch_may_have_more_prompts_than_a_part(tiny_text, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 2)
    results = narcli.load(tiny_text).images(prompts=["red", "green", "blue"], seed=1, batch_size=3)
    assert [result.prompt for result in results] == ["red", "green", "blue"]


def test_transformers_is_imported_only_to_encode(tiny, tiny_text, tmp_path):
    code = (
        "import sys, narcli\n"
        f"narcli.load({str(tiny)!r}).images(207, seed=0)\n"
        "print('transformers' in sys.modules)\n"
        "for _ in range(2):\n"
        "    sys.modules.pop('transformers', None)\n"
        f"    narcli.load({str(tiny_text)!r}).images(prompts='a', seed=0)\n"
        "    print('transformers' in sys.modules)\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(narcli.__file__).parents[1]),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_card_encodes_prompts_of_equal_length_together_in_groups_of_one_size(dtype, monkeypatch):
    folder = MODELS["emoji-text"].path / "text_encoder"
    encoder = T5Encoder.load(folder, dtype)
    texts = ["a red apple", "a cat", "a big apple", "a dog", "a cat", "ice cream"]
    alone, whole, shapes = [encoder.encode(text, 24) for text in texts], encoder.model.forward, []

    def forward(*given, input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return whole(*given, input_ids=input_ids, **options)

    monkeypatch.setattr(encoder.model, "forward", forward)
    lengths = [len(each.features) for each in alone]
    for made, expected in zip(encoder.encode_all(texts, 24), alone, strict=True):
        assert torch.equal(made.features, expected.features)  # one by one on a CPU
    assert shapes == [(1, length) for length in sorted(lengths)]
    shapes.clear()
    monkeypatch.setattr(type(encoder.model), "device", SimpleNamespace(type="cuda"))
    whole_tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, device: whole_tensor(data))
    monkeypatch.setattr(text_encoder, "TOGETHER", 2)
    together = encoder.encode_all(texts, 24)
    assert {rows for rows, _ in shapes} == {2} and len(shapes) < len(texts)
    for made, expected in zip(together, alone, strict=True):
        assert made.dropped == expected.dropped
        close = 1e-3 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(made.features, expected.features, rtol=0, atol=close)
