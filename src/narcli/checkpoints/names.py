"""Names that a prompt may mean: a model of text draws the nearest name that it was trained on.

A small model knows few words. An encoder of word pieces, trained after a sentence encoder
(docs/notes/training.md), finds the name of the picture that a prompt means, and the prompt is read as this
name. Its folder, ``names`` in that of the text encoder, holds a T5 as ``transformers`` saves it,
``names.txt``, a name a line, and ``names.safetensors``:

    look.weight (D, width), look.bias (D,)   projection of a prompt, the mean of its tokens' states
    vectors (P, D)                           a vector of norm 1 for each name
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..media.textfiles import read_text, split_lines
from .containers import read_tensors
from .t5 import quiet, read_t5, tokenize

NAMES = "names"
#: Most bytes of all names, and characters of one.
MOST, LONGEST = 2**24, 500
#: Tokens of a prompt that are read, with the end token.
READ = 40


@dataclass(frozen=True)
class Names:
    """Names, and the encoder that finds the nearest one of a prompt.

    Args:
        model: T5 of word pieces, in float32 on the CPU.
        tokenizer: its tokenizer, of ``transformers``.
        weight: (D, width), projection.
        bias: (D,), its bias.
        vectors: (P, D) of the names.
        names: P cleaned texts.
    """

    model: Any
    tokenizer: Any
    weight: Tensor
    bias: Tensor
    vectors: Tensor
    names: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Names:
        """Load a folder of names.

        Raises:
            CheckpointError: an incomplete folder, or files that do not belong together.
        """
        model, tensors, tokenizer = read_t5(folder)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        model.tie_weights()
        path = folder / "names.txt"
        names = split_lines(read_text(path, "a list of names", MOST))
        if not names or not all(0 < len(name) <= LONGEST and name.isprintable() for name in names):
            raise CheckpointError(
                f"{path} has no name, or a line that is not a printable name of 1 to {LONGEST} characters.",
                "Get the folder again, whole.",
            )
        path = folder / "names.safetensors"
        stored = {name: tensor.float() for name, tensor in read_tensors(path).items()}
        vectors = stored.get("vectors", torch.empty(0))
        size, width = vectors.shape[-1], model.config.d_model
        wanted = {"look.weight": (size, width), "look.bias": (size,), "vectors": (len(names), size)}
        if {name: tuple(tensor.shape) for name, tensor in stored.items()} != wanted:
            raise CheckpointError(
                f"{path} does not hold vectors of {len(names):,} names and a projection of {width} numbers.",
                "Its files do not belong together; get the folder again, whole.",
            )
        return cls(model.eval(), tokenizer, stored["look.weight"], stored["look.bias"], vectors, tuple(names))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Save a folder that ``load`` reads, with tensors in ``dtype``; None keeps their format."""
        tensors = {"look.weight": self.weight, "look.bias": self.bias, "vectors": self.vectors}
        with quiet():
            (self.model if dtype is None else copy.deepcopy(self.model).to(dtype)).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        stored = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
        save_file(stored, folder / "names.safetensors")
        (folder / "names.txt").write_text("".join(f"{name}\n" for name in self.names), "utf-8")

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @torch.inference_mode()
    def nearest(self, text: str) -> tuple[str, str]:
        """Return the name that a cleaned prompt means, and the end of the prompt that was not read."""
        if text in self._known:
            return text, ""
        ids, dropped = tokenize(self.model, self.tokenizer, text, READ)
        states = self.model(input_ids=torch.tensor([ids], device="cpu")).last_hidden_state[0]
        look = F.normalize(F.linear(states.mean(0), self.weight, self.bias), dim=0)
        return self.names[int((self.vectors @ look).argmax())], dropped
