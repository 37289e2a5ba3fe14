"""Captions: their file, their noise, and targets shared by codes that look alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..media.textfiles import expand, read_text, split_lines
from ..models.vq import VQTokenizer
from ..prompts import parse_prompt
from .noise import exchange, grouped

CAPTIONS = "captions.tsv"


MAX_CAPTIONS = 2**30  # bytes of captions.tsv


ALIKE = 16  # codes that share the probability of a target


def load_captions(folder: Path, count: int) -> list[list[str]]:
    """Load cleaned captions: a line for each picture, tabs between its captions.

    Args:
        folder: folder with a file ``captions.tsv``.
        count: number of pictures.

    Raises:
        UsageError: no such file.
        CheckpointError: not UTF-8, another number of lines, or an unusable caption; names the line.
    """
    path = expand(folder) / CAPTIONS
    if not os.path.lexists(path):
        raise UsageError(
            f"There is no {CAPTIONS} in {str(folder)!r}.",
            "Write a line for each picture, tabs between captions.",
        )
    lines = split_lines(read_text(path, "captions", MAX_CAPTIONS))
    if len(lines) != count:
        raise CheckpointError(
            f"{path} has {len(lines)} lines, and there are {count} pictures.",
            "Write a line for each picture, tabs between captions.",
        )
    return [
        [_caption(text, f"{path}, line {number}") for text in line.split("\t")]
        for number, line in enumerate(lines, 1)
    ]


def _caption(text: str, where: str) -> str:
    if not text.strip():
        raise CheckpointError(f"{where}: a caption is empty.", "Put a single tab between captions.")
    try:
        return parse_prompt(text).cleaned
    except UsageError as error:
        message = error.message.replace("he prompt", "he caption", 1)  # its beginning
        hint = error.hint if "`" not in (error.hint or "") else "Shorten it."
        raise CheckpointError(f"{where}: {message}", hint) from None


class CaptionNoise:
    """Exchange some input tokens for those of other pictures, as ``noise.Noise`` does.

    Tokens of random pictures are visibly wrong, so the network has to heed the caption. In half of the
    pictures all exchanged tokens come from one other picture of the subject, if there is one. The input then
    shows two colours, for example, and the caption decides. Pictures that look the same must not share a
    subject, since their tokens would tell what the caption should.

    Args:
        tokens: (items, N) int64.
        subjects: (items,) int64, equal for pictures of the same subject that differ in attributes.
        most: largest share of a picture's tokens that is exchanged. Each picture's share is uniform below it;
            a share above 1 means all tokens.
    """

    def __init__(self, tokens: Tensor, subjects: Tensor, most: float) -> None:
        self.tokens, self.most = tokens, most
        self.subjects = subjects.unique(return_inverse=True)[1]
        self.order, self.start, self.count = grouped(self.subjects)
        self.place = self.order.argsort() - self.start[self.subjects]  # index within its subject

    def __call__(self, items: Tensor) -> Tensor:
        """Noisy tokens of items (B,): (B, N)."""
        tokens, subjects = self.tokens[items], self.subjects[items]
        if not self.most:
            return tokens
        count = self.count[subjects]
        ahead = 1 + (torch.rand(len(items)) * (count - 1)).long()
        sibling = self.order[self.start[subjects] + (self.place[items] + ahead) % count]
        alike = (count > 1) & (torch.rand(len(items)) < 0.5)
        donors = torch.where(alike[:, None], sibling[:, None], torch.randint(len(self.tokens), tokens.shape))
        return exchange(tokens, self.tokens[donors, torch.arange(tokens.shape[1])], self.most)


class SoftTargets:
    """Cross-entropy with part of each target's probability on similar codes (label smoothing).

    A cell of an unseen combination may need a code that no training picture has there. With similar codes as
    targets, the network learns the look of a cell rather than the number of its code, and can find such a
    code.

    Args:
        tokenizer: tokenizer of the codes.
        width: standard deviation of a Gaussian over the distance of code vectors, in units of the median
            distance from a code to the closest other one; 0 keeps hard targets.

    Raises:
        UsageError: ``width`` is not from 0 to 10.
    """

    def __init__(self, tokenizer: VQTokenizer, width: float) -> None:
        if not 0 <= width <= 10:
            raise UsageError(f"code_smoothing is {width}, expected a width from 0 to 10.")
        self.width = width
        if not width:
            return
        with torch.no_grad():
            vectors = tokenizer.quantize(torch.arange(tokenizer.config.codebook_size)).float()
        most = min(ALIKE, len(vectors))
        parts = [
            torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist").topk(most, largest=False)
            for part in vectors.split(1024)
        ]
        nearest, self.codes = torch.cat([f.values for f in parts]), torch.cat([f.indices for f in parts])
        unit = nearest[:, :2].amax(1).median()
        spread = (width * unit).clamp(min=1e-6)  # codes may be equal
        self.shares = (-0.5 * (nearest / spread) ** 2).softmax(1)

    def loss(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Mean loss of logits (M, V) for tokens (M,): a scalar."""
        if not self.width:
            return F.cross_entropy(logits, tokens)
        logits = logits.float()
        expected = (logits.gather(1, self.codes[tokens]) * self.shares[tokens]).sum(1)
        return (logits.logsumexp(1) - expected).mean()


T = TypeVar("T")


def pick(captions: Sequence[T], number: float) -> T:
    """Pick the first caption for a number in [0, 0.5), else any of them with equal probability."""
    return captions[max(0, int((2 * number - 1) * len(captions)))]
