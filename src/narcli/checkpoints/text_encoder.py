"""Text features: a T5 encoder, and its features as the transformer's condition.

The encoder is a folder that ``transformers`` saved: ``google/flan-t5-xl`` without its decoder, or a small one
that narcli trained. Prompts are encoded without padding, and features do not depend on other prompts: a CPU
encodes each by itself, since a batch in float32 rounds otherwise (by up to 4e-4); a card groups of one size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.attention import CHECKED
from .config import NAMES
from .names import Names
from .t5 import fill, read_t5, save_t5, tokenize

#: Prompts of equal length that a card encodes at once.
TOGETHER = 8


@dataclass(frozen=True)
class Encoded:
    """Features of one prompt.

    Args:
        features: (n, width), n tokens with the end token.
        dropped: the end of the prompt that did not fit, or "".
        drawn_as: the name that it was read as, or "" where prompts are read as they are.
    """

    features: Tensor
    dropped: str = ""
    drawn_as: str = ""


@dataclass(frozen=True)
class T5Encoder:
    """A T5 encoder and its tokenizer, both of ``transformers``; with ``names`` prompts are read as these."""

    model: Any
    tokenizer: Any
    names: Names | None = None

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype | None = torch.bfloat16, device: str | torch.device = "cpu"
    ) -> T5Encoder:
        """Load a folder that ``transformers`` saved, for inference.

        Args:
            folder: folder of a T5 encoder, or of a whole T5, whose decoder is ignored.
            dtype: of weights and features; None keeps the stored one.
            device: where it runs.

        Raises:
            CheckpointError: not a T5 folder, or an incomplete one.
        """
        model, tensors, tokenizer = read_t5(folder)
        if torch.device(device).type in CHECKED:  # transformers would call torch's attention by itself
            model.set_attn_implementation("eager")
        model = fill(model, tensors, dtype, device)
        return cls(model, tokenizer, _names(folder, None if dtype is None else torch.float32))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Save a folder that ``load`` reads, with tensors in ``dtype``; None keeps their format."""
        save_t5(self.model, self.tokenizer, folder, dtype)
        if self.names is not None:
            self.names.save(folder / NAMES, dtype)

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.model.config.d_model)

    def encode(self, text: str, tokens: int) -> Encoded:
        """Encode a cleaned prompt, cut to ``tokens`` tokens with the end token."""
        return self.encode_all([text], tokens)[0]

    @torch.inference_mode()
    def encode_all(self, texts: Sequence[str], tokens: int) -> list[Encoded]:
        """Encode cleaned prompts as ``encode``, on a card ``TOGETHER`` of equal length at a time.

        Groups that are not full are filled, so that features do not depend on the other prompts.
        """
        size = 1 if self.model.device.type == "cpu" else TOGETHER
        read = [self._read(text, tokens) for text in texts]
        features: dict[int, Tensor] = {}
        by_length = sorted(range(len(texts)), key=lambda index: len(read[index][0]))
        for _, group in groupby(by_length, key=lambda index: len(read[index][0])):
            alike = list(group)
            for start in range(0, len(alike), size):
                chosen = alike[start : start + size]
                rows = [read[index][0] for index in chosen]
                ids = torch.tensor(rows + rows[-1:] * (size - len(rows)), device=self.model.device)
                states = self.model(input_ids=ids).last_hidden_state.cpu()
                features |= zip(chosen, states, strict=False)
        return [Encoded(features[index], *said) for index, (_, *said) in enumerate(read)]

    def _read(self, text: str, tokens: int) -> tuple[list[int], str, str]:
        """Tokenize a prompt: ids to encode, the end that does not fit, and the name that it is drawn as."""
        if self.names is None:
            return *tokenize(self.model, self.tokenizer, text, tokens), ""
        name, dropped = self.names.nearest(text)
        ids, cut = tokenize(self.model, self.tokenizer, name, tokens)
        return ids, dropped or cut, name


def left_pad(features: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """Join features of several prompts: tokens at the end, zeros before them.

    Args:
        features: B times (n, width), n at most ``tokens``.
        tokens: C, the condition tokens of the transformer.

    Returns:
        The condition (B, C, width), and (B, C) bool, true where it is padding.
    """
    condition = torch.stack([F.pad(rows, (0, 0, tokens - len(rows), 0)) for rows in features])
    lengths = torch.tensor([len(rows) for rows in features])
    return condition, torch.arange(tokens) < (tokens - lengths)[:, None]


def check_encoder(folder: Path) -> None:
    """Check a folder that ``transformers`` saved: names and shapes of all tensors, tokenizers, names.

    Raises:
        CheckpointError: not a T5 folder, or an incomplete one.
    """
    read_t5(folder)
    _names(folder, None)


def _names(folder: Path, dtype: torch.dtype | None) -> Names | None:
    return Names.load(folder / NAMES, dtype) if os.path.lexists(folder / NAMES) else None
