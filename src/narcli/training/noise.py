"""Input tokens exchanged for others, and samples of the network as input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..kernels import prepare
from ..models.transformer import NARTransformer
from ..sampling import SamplingSettings
from .loop import TrainSettings, batch_indices

#: Share of labels replaced by the unconditional one, for guidance.
LABEL_DROPOUT = 0.1


ROLLOUT_STEPS = 20  # for which samples are drawn at once


ROLLOUT_BATCH = 32


ROLLOUT_SETTINGS = SamplingSettings(temperature=0.7)


class Noise:
    """Exchange some input tokens for those of other pictures in the same place.

    A network that memorises few pictures follows earlier tokens more than the class, so one unusual draw
    spoils the picture. With wrong input tokens it learns to recover.

    Args:
        tokens: (items, N) int64.
        labels: (items,) int64.
        most: largest share of a picture's tokens that is exchanged. Each picture's share is uniform below it;
            a share above 1 means all tokens. Half of the exchanged tokens come from the same class, half
            from any.
        keep_first: keep the first token of every picture, which tells the start of a loop.
    """

    def __init__(self, tokens: Tensor, labels: Tensor, most: float, keep_first: bool = False) -> None:
        self.most, self.keep_first = most, keep_first
        self.labels = labels
        self.order, self.start, self.count = grouped(labels)
        self.sorted = tokens[self.order]

    def __call__(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Add noise to tokens (B, N) of labels (B,): (B, N)."""
        if not self.most:
            return tokens
        shape = tokens.shape
        siblings = self.start[labels, None] + (torch.rand(shape) * self.count[labels, None]).long()
        anyone = torch.randint(len(self.sorted), shape)
        donors = torch.where(torch.rand(shape) < 0.5, siblings, anyone)
        noisy = exchange(tokens, self.sorted[donors, torch.arange(shape[1])], self.most)
        if self.keep_first:
            noisy[:, 0] = tokens[:, 0]
        return noisy

    def nearest(self, drawn: Tensor, items: Tensor) -> Tensor:
        """Find the item of the same class that shares most tokens with each sample.

        Args:
            drawn: (B, N) tokens of samples.
            items: (B,) items that the samples are of; they have precedence among equals.

        Returns:
            (B,) items.
        """
        matches = []
        for row, item in zip(drawn, items, strict=True):
            begin, count = self.start[self.labels[item]], self.count[self.labels[item]]
            common = 2 * (self.sorted[begin : begin + count] == row).sum(1)
            alike = self.order[begin : begin + count]
            matches.append(alike[(common + (alike == item)).argmax()])
        return torch.stack(matches)


class Rollouts:
    """Samples of the network itself as its input (scheduled sampling, arXiv 1506.03099).

    Teacher forcing shows the network right tokens or noise. Sampling continues its own tokens, whose mistakes
    are related. Here it learns to return from those to the picture of the sample.

    Every ``ROLLOUT_STEPS`` steps the present weights draw the samples for the coming steps, in bfloat16 with
    ``ROLLOUT_SETTINGS``.

    Args:
        model: network in training.
        tokens: (items, N) int64.
        sampled: a network, items (B,) and seeds (B,) -> samples (B, N) with these items as targets.
        settings: of the optimisation.
        share: of the examples of a batch, in [0, 1]; above 0 at least one.

    Raises:
        UsageError: the share is out of range.
    """

    def __init__(
        self,
        model: NARTransformer,
        tokens: Tensor,
        sampled: Callable[[NARTransformer, Tensor, Tensor], Tensor],
        settings: TrainSettings,
        share: float,
    ) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"rollouts is {share}, expected a share from 0 to 1.")
        self.model, self.sampled, self.settings, self.items = model, sampled, settings, len(tokens)
        self.count = max(1, round(share * settings.batch_size)) if share else 0
        self.drawn = torch.zeros(ROLLOUT_STEPS, self.count, tokens.shape[1], dtype=torch.int64)
        #: For ``loop.train``: a resumed run needs the same samples and settings.
        self.memory: dict[str, Tensor] = {}
        self.about: dict[str, object] = {}
        if share:
            self.memory = {"drawn": self.drawn}
            self.about = {"rollouts": {"share": share, "every": ROLLOUT_STEPS, **asdict(ROLLOUT_SETTINGS)}}

    def __call__(self, step: int, noisy: Tensor, tokens: Tensor) -> Tensor:
        """Input (B, N) of a step, from noisy and right tokens.

        In the first examples some tokens, half of the time all, are those of samples.
        """
        if not self.count:
            return noisy
        place = step % ROLLOUT_STEPS
        if not place:
            self._renew(step)
        mixed = exchange(tokens[: self.count], self.drawn[place], 2.0)
        return torch.cat([mixed, noisy[self.count :]])

    def _renew(self, step: int) -> None:
        network = prepare(copy.deepcopy(self.model).bfloat16().eval())
        ahead = range(step, step + ROLLOUT_STEPS)
        batches = [batch_indices(self.items, self.settings, later)[: self.count] for later in ahead]
        items = torch.from_numpy(np.concatenate(batches))
        first = (self.settings.seed * 1_000_003 + step) * len(items) % 2**32
        parts = zip(
            items.split(ROLLOUT_BATCH), torch.arange(first, first + len(items)).split(ROLLOUT_BATCH),
            strict=True,
        )  # fmt: skip
        # Autocast would keep copies of weights without gradients, and the step would use them.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            drawn = [self.sampled(network, *part) for part in parts]
        self.drawn.copy_(torch.cat(drawn).view_as(self.drawn))


def grouped(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group items by label: their order (items,), and each label's start in it and count."""
    count = torch.bincount(labels)
    return labels.argsort(stable=True), count.cumsum(0) - count, count


def exchange(tokens: Tensor, others: Tensor, most: float) -> Tensor:
    """Take a share of each row, uniform below ``most``, from ``others``: (B, N)."""
    share = torch.rand(len(tokens), 1) * most
    return torch.where(torch.rand(tokens.shape) < share, others, tokens)
