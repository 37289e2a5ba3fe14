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


MAX_CAPTIONS = 2**30  # bytes of that file


ALIKE = 16  # codes that share the probability of a target


def load_captions(folder: Path, count: int) -> list[list[str]]:
    """Cleaned captions of pictures: line by line those of each, tabs between them.

    Args:
        folder: with a file ``captions.tsv``.
        count: of the pictures.

    Raises:
        UsageError: no such file.
        CheckpointError: not UTF-8, not as many lines as pictures, or an unusable caption, with its line.
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
        message = error.message.replace("he prompt", "he caption", 1)  # which is how it begins
        hint = error.hint if "--" not in (error.hint or "") else "Shorten it."
        raise CheckpointError(f"{where}: {message}", hint) from None


class CaptionNoise:
    """Exchanges some input tokens for those of other pictures, as ``nar.Noise`` does.

    Those of any pictures are seen to be wrong, and leave it to the caption to tell what is there. In half of
    the pictures all come from one other picture of the subject, where there is one: then the tokens speak
    for two colours, say, and the caption decides. That one is never the picture itself; pictures that look
    the same must not share a subject, as their tokens would say what the caption should.

    Args:
        tokens: (items, N) int64.
        subjects: (items,) int64, equal for pictures of the same subject that differ in attributes.
        most: largest share of a picture's tokens that is exchanged; each picture's own is uniform below it,
            and all its tokens where that exceeds 1.
    """

    def __init__(self, tokens: Tensor, subjects: Tensor, most: float) -> None:
        self.tokens, self.most = tokens, most
        self.subjects = subjects.unique(return_inverse=True)[1]
        self.order, self.start, self.count = grouped(self.subjects)
        self.place = self.order.argsort() - self.start[self.subjects]  # of an item among those of its subject

    def __call__(self, items: Tensor) -> Tensor:
        """(B,) -> (B, N)."""
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
    """Cross-entropy with part of each target's probability on codes that look alike (label smoothing).

    A cell of a combination that was not in training may need a code that no picture of the training has
    there. Where codes that look alike stand for each other, the network learns how a cell looks rather than
    which number it has, and can find such a code, too.

    Args:
        tokenizer: whose codes they are.
        width: standard deviation of a Gaussian over the distance of code vectors, in units of the median
            distance from a code to the closest other one; 0 for the targets as they are.

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
        found = [
            torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist").topk(most, largest=False)
            for part in vectors.split(1024)
        ]
        nearest, self.codes = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
        unit = nearest[:, :2].amax(1).median()
        spread = (width * unit).clamp(min=1e-6)  # codes may be the same
        self.shares = (-0.5 * (nearest / spread) ** 2).softmax(1)

    def loss(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(M, V) and (M,) -> the mean."""
        if not self.width:
            return F.cross_entropy(logits, tokens)
        logits = logits.float()
        expected = (logits.gather(1, self.codes[tokens]) * self.shares[tokens]).sum(1)
        return (logits.logsumexp(1) - expected).mean()


T = TypeVar("T")


def pick(captions: Sequence[T], number: float) -> T:
    """The first caption for a number in [0, 0.5), any of them, as likely as the others, up to 1."""
    return captions[max(0, int((2 * number - 1) * len(captions)))]
