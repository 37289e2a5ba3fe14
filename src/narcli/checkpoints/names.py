"""Names that a prompt may mean: a model of text draws the nearest name that it was trained on.

A small model knows few words. An encoder of word pieces, trained after a sentence encoder
(docs/notes/training.md), finds the name of the picture that a prompt means, and the prompt is read as this
name. Its folder, ``names`` in that of the text encoder, holds a T5 as ``transformers`` saves it,
``names.txt``, a name a line, and ``names.safetensors``:

    look.weight (D, width), look.bias (D,)   projection of a prompt, the mean of its tokens' states
    vectors (P, D)                           a vector for each name, of which the direction counts
"""

from __future__ import annotations

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
from .config import LONGEST_NAME, NAMES_LIST, NAMES_VECTORS
from .containers import read_tensors
from .t5 import fill, read_t5, save_t5, tokenize

#: Most bytes of all names.
MOST = 2**24
#: Tokens of a prompt that are read, with the end token.
READ = 40


@dataclass(frozen=True)
class Names:
    """Names, and the encoder that finds the nearest one of a prompt.

    Args:
        model: T5 of word pieces, on the CPU.
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
    def load(cls, folder: Path, dtype: torch.dtype | None = torch.float32) -> Names:
        """Load a folder of names, with tensors in ``dtype``; None keeps their format, to save them.

        Raises:
            CheckpointError: an incomplete folder, or files that are damaged or do not belong together.
        """
        model, tensors, tokenizer = read_t5(folder)
        path = folder / NAMES_LIST
        names = split_lines(read_text(path, "a list of names", MOST))
        if not names or not all(0 < len(name) <= LONGEST_NAME and name.isprintable() for name in names):
            raise CheckpointError(
                f"{path} has no name, or a line that is no printable name of 1 to {LONGEST_NAME} characters.",
                "Get the folder again, whole.",
            )
        path, width = folder / NAMES_VECTORS, model.config.d_model
        stored = {name: tensor.to(dtype or tensor.dtype) for name, tensor in read_tensors(path).items()}
        sizes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        (size,) = sizes.get("look.bias", ())[:1] or (0,)
        if not size or sizes != {
            "look.weight": (size, width), "look.bias": (size,), "vectors": (len(names), size)
        }:  # fmt: skip
            raise CheckpointError(
                f"{path} does not hold vectors of {len(names):,} names and a projection of {width} numbers.",
                "Its files do not belong together; get the folder again, whole.",
            )
        if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in stored.values()):
            raise CheckpointError(f"{path} has numbers that are not finite.", "Get it again; it is damaged.")
        return cls(
            fill(model, tensors, dtype),
            tokenizer,
            stored["look.weight"],
            stored["look.bias"],
            stored["vectors"],
            tuple(names),
        )

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Save a folder that ``load`` reads, with tensors in ``dtype``; None keeps their format."""
        tensors = {"look.weight": self.weight, "look.bias": self.bias, "vectors": self.vectors}
        save_t5(self.model, self.tokenizer, folder, dtype)
        stored = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
        save_file(stored, folder / NAMES_VECTORS)
        (folder / NAMES_LIST).write_text("".join(f"{name}\n" for name in self.names), "utf-8")

    @cached_property
    def known(self) -> frozenset[str]:
        """The names, as a set."""
        return frozenset(self.names)

    @cached_property
    def _directions(self) -> Tensor:
        return F.normalize(self.vectors, dim=1)

    @torch.inference_mode()
    def nearest(self, text: str) -> tuple[str, str]:
        """Return the name that a cleaned prompt means, and the end of the prompt that was not read."""
        if text in self.known:
            return text, ""
        ids, dropped = tokenize(self.model, self.tokenizer, text, READ)
        states = self.model(input_ids=torch.tensor([ids], device="cpu")).last_hidden_state[0]
        look = F.normalize(F.linear(states.mean(0), self.weight, self.bias), dim=0)
        return self.names[int((self._directions @ look).argmax())], dropped
