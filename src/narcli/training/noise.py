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
    """Exchanges some input tokens for those that other pictures have in the same place.

    A network that knows few pictures by heart follows the tokens before it more than the class, and the
    first unusual draw leads it astray. With wrong tokens among its inputs it learns to come back.

    Args:
        tokens: (items, N) int64.
        labels: (items,) int64.
        most: largest share of a picture's tokens that is exchanged; each picture's own is uniform below it,
            and all its tokens where that exceeds 1. Half of the exchanged tokens come from the same class,
            half from any.
        keep_first: leave every picture its first token, which says where a loop begins.
    """

    def __init__(self, tokens: Tensor, labels: Tensor, most: float, keep_first: bool = False) -> None:
        self.most, self.keep_first = most, keep_first
        self.labels = labels
        self.order, self.start, self.count = grouped(labels)
        self.sorted = tokens[self.order]

    def __call__(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """(B, N) tokens of (B,) labels -> (B, N)."""
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
        """Find the item of the class of each item (B,) that has most tokens of (B, N) in common: (B,).

        Among equals it is the item itself, so that none is left out.
        """
        found = []
        for row, item in zip(drawn, items, strict=True):
            begin, count = self.start[self.labels[item]], self.count[self.labels[item]]
            common = 2 * (self.sorted[begin : begin + count] == row).sum(1)
            alike = self.order[begin : begin + count]
            found.append(alike[(common + (alike == item)).argmax()])
        return torch.stack(found)


class Rollouts:
    """Samples of the network itself as its input (scheduled sampling, arXiv 1506.03099).

    Teacher forcing shows the network nothing but right tokens, or noise; sampling goes on from its own, whose
    mistakes go together. Here it learns to come back from those to the picture that the sample is of.

    Every ``ROLLOUT_STEPS`` steps the weights of that moment, in bfloat16, draw the samples for the steps to
    come, with ``ROLLOUT_SETTINGS``.

    Args:
        model: what is trained.
        tokens: (items, N) int64.
        sampled: a network, items (B,) and seeds (B,) -> samples (B, N) that are to become these items.
        settings: of the optimisation.
        share: of the examples of a batch, in [0, 1]; above 0 at least one.

    Raises:
        UsageError: another share.
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
        #: For ``loop.train``: a run that goes on needs the samples again, and the same settings.
        self.memory: dict[str, Tensor] = {}
        self.about: dict[str, object] = {}
        if share:
            self.memory = {"drawn": self.drawn}
            self.about = {"rollouts": {"share": share, "every": ROLLOUT_STEPS, **asdict(ROLLOUT_SETTINGS)}}

    def __call__(self, step: int, noisy: Tensor, tokens: Tensor) -> Tensor:
        """Input (B, N) of a step, from that with noise and the right tokens.

        In the first examples some tokens are the sample's, half of the time all.
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
        wanted = torch.from_numpy(np.concatenate(batches))
        first = (self.settings.seed * 1_000_003 + step) * len(wanted) % 2**32
        parts = zip(
            wanted.split(ROLLOUT_BATCH), torch.arange(first, first + len(wanted)).split(ROLLOUT_BATCH),
            strict=True,
        )  # fmt: skip
        # Autocast would keep copies of weights without gradients, and the step would use them.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            drawn = [self.sampled(network, *part) for part in parts]
        self.drawn.copy_(torch.cat(drawn).view_as(self.drawn))


def grouped(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Items by label: (items,) places in order, and where each label's begin there and how many they are."""
    count = torch.bincount(labels)
    return labels.argsort(stable=True), count.cumsum(0) - count, count


def exchange(tokens: Tensor, others: Tensor, most: float) -> Tensor:
    """(B, N) with a share of each row, uniform below ``most``, taken from ``others``."""
    share = torch.rand(len(tokens), 1) * most
    return torch.where(torch.rand(tokens.shape) < share, others, tokens)
