"""Families of files as data: one more is one more format, and loading names none."""

import ast
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import narcli
from narcli.checkpoints.config import read_config
from narcli.checkpoints.formats import families
from narcli.checkpoints.formats.format import PARTS, Format
from narcli.checkpoints.load import build, load_tokenizer
from narcli.checkpoints.save import save_model
from narcli.errors import CheckpointError
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import networks_of, released_tokenizer
from narcli.models.larp import LARPConfig
from narcli.models.vq import VQConfig
from narcli.rules import whole


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of a tokenizer with a codebook and nothing else."""

    kind = "image-tokenizer"
    codes: int


class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.book = nn.Parameter(torch.zeros(config.codes, 2))


TOY = Format(
    "a toy",
    lambda names: "their_book" in names or "book" in names,
    "tokenizer",
    rules={"codes": whole(1, 9)},
    marks=("codes", "n_codes"),
    read_config=lambda path, given: {"codes": given["n_codes"]} if "n_codes" in given else {},
    rename=lambda names: {"their_book": "book"},
    dropped={"step.*": "counts of the training"},
    infer=lambda contents: ToyConfig(len(contents.tensors["book"])),
    classes=lambda: (ToyConfig, Toy),
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(families, "FORMATS", (*families.FORMATS, TOY))


def test_a_new_family_is_one_format(toy, tmp_path):
    book = torch.rand(5, 2)
    save_file({"their_book": book, "step.count": torch.zeros(1)}, tmp_path / "toy.safetensors")
    (tmp_path / "config.json").write_text('{"n_codes": 5}')
    assert read_config(tmp_path / "config.json").tokenizer == {"codes": 5}
    loaded = load_tokenizer(tmp_path / "toy.safetensors")
    assert torch.equal(loaded.book, book)
    again = load_tokenizer(save_model(tmp_path / "folder", tokenizer=loaded))
    assert torch.equal(again.book, book) and again.config == ToyConfig(5)
    assert read_config(tmp_path / "folder" / "config.json").kind == "image-tokenizer"


def test_messages_about_a_new_family_have_the_files_own_names(toy, tmp_path):
    save_file({"their_book": torch.rand(5, 3)}, tmp_path / "toy.safetensors")
    with pytest.raises(CheckpointError, match=r"misshapen 1 tensors: their_book \(5, 3\) instead of"):
        load_tokenizer(tmp_path / "toy.safetensors")


READ = [format for format in families.FORMATS if format.part]


@pytest.mark.parametrize("format", READ, ids=[format.words for format in READ])
def test_a_format_is_whole(format):
    sizes, _ = format.classes()
    assert format.part in PARTS and format.rules.keys() == {field.name for field in fields(sizes)}


def test_only_formats_name_families():
    folder = Path(narcli.__file__).parent / "checkpoints"
    modules = {path.stem for path in (folder / "formats").glob("*.py")}
    families_of_files = modules - {"__init__", "families", "format"}
    assert {"vq", "larp", "transformer"} <= families_of_files
    for name in ("config", "load", "save", "convert", "conversions"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        named = {
            node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1
        }
        assert not {f"formats.{family}" for family in families_of_files} & named


# --- rows of the catalog -------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in MODELS.values() if row.sizes], ids=lambda row: row.name)
def test_rows_state_sizes_that_a_config_could(row):
    if row.kind == "text-encoder":
        assert networks_of(row).parameters == {"text_encoder": 1_223_527_424}
        return
    tokenizer = row.kind.endswith("-tokenizer")
    rules = families.readers(row.sizes, "tokenizer" if tokenizer else "transformer")[0].rules
    assert row.sizes.keys() <= rules.keys()
    assert all(rules[name][1](value) for name, value in row.sizes.items())


def test_rows_of_tokenizers_state_the_released_sizes():
    assert released_tokenizer(MODELS["vq16-c2i"]) == released_tokenizer(MODELS["vq16-t2i"]) == VQConfig()
    assert released_tokenizer(MODELS["larp-long"]) == LARPConfig()
    assert asdict(build(LARPConfig()).config) == asdict(LARPConfig())
