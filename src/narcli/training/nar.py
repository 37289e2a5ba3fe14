"""Training of the transformer with teacher forcing (arXiv 2503.10696, section 3.3).

One forward pass over the condition and all tokens, under the mask that lets every cell see the cells of
its own and earlier steps, gives every head's prediction of every cell; one cross-entropy trains them all.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import TOKENS
from ..errors import CheckpointError, UsageError
from ..kernels import draw, prepare
from ..models.transformer import NARTransformer, TransformerConfig
from ..models.vq import VQTokenizer
from ..sampling import SamplingSettings, sample
from ..writers import write_atomic
from .data import Pictures, read_array
from .loop import TrainSettings, batch_indices, train

#: Share of labels replaced by the unconditional one, for guidance.
LABEL_DROPOUT = 0.1
ROLLOUT_STEPS = 20  # for which samples are drawn at once
ROLLOUT_BATCH = 32
ROLLOUT_SETTINGS = SamplingSettings(temperature=0.7)


def train_nar(
    tokens: Tensor,
    labels: Tensor,
    tokenizer: VQTokenizer,
    config: TransformerConfig,
    settings: TrainSettings,
    folder: Path,
    start: NARTransformer | None = None,
    loop_starts: int = 1,
    dropout: float = 0.1,
    token_noise: float = 0.0,
    rollouts: float = 0.0,
    quiet: bool = False,
) -> NARTransformer:
    """Train a class-conditional transformer; see ``loop.train`` for what ``folder`` keeps.

    Args:
        tokens: (items, N) int64 codes in raster order.
        labels: (items,) int64.
        tokenizer: whose codes the token embeddings of a new network start from; decodes the sample sheets.
        config: sizes of the network.
        settings: of the optimisation.
        folder: where the run lives.
        start: a network of those sizes that goes on; it stays as it is. None for a new one.
        loop_starts: of each clip, its items one after the other; above 1 the first token says which one an
            item is, see ``mark_starts``.
        dropout: on token embeddings, attention outputs and feed-forward outputs, in [0, 1).
        token_noise: largest share of a picture's input tokens that is exchanged, in [0, 2]; see ``Noise``.
        rollouts: share of examples whose input the network drew, in [0, 1]; see ``Rollouts``.
        quiet: no progress display.

    Raises:
        UsageError: ``rollouts`` is no share, or a clip has more starts than the tokenizer codes.
    """
    torch.manual_seed(settings.seed)
    marked = loop_starts > 1
    if marked:
        tokens = mark_starts(tokens, loop_starts, tokenizer)
    noise = Noise(tokens, labels, token_noise, keep_first=marked)
    model = NARTransformer(config, dropout)
    if start:
        model.load_state_dict(start.state_dict())
    else:
        model.init_weights()
        with torch.no_grad():
            # Codes that look alike start alike, which saves the network from learning it token by token.
            codes = tokenizer.quantize(torch.arange(config.vocab_size))
            spread = torch.randn(codes.shape[1], config.dim) * 0.02
            model.token_embedding.weight[: config.vocab_size] += codes @ spread
    model.train()
    forward = torch.compile(model.forward_train) if settings.compile else model.forward_train

    def sampled(network: NARTransformer, items: Tensor, seeds: Tensor) -> Tensor:
        known = tokens[items]
        known[:, 1 if marked else 0 :] = -1
        drawn = sample(network, labels[items], seeds.tolist(), ROLLOUT_SETTINGS, given=known, draw=draw)
        # A sample of another picture of the class is no way to this one. Were that one the target instead,
        # the network would draw what it draws most ever more often.
        return torch.where((noise.nearest(drawn, items) == items)[:, None], drawn, tokens[items])

    rollout = Rollouts(model, tokens, sampled, settings, rollouts)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        items = torch.from_numpy(batch_indices(len(tokens), settings, step))
        target = tokens[items]
        dropped = torch.rand(len(target)) < LABEL_DROPOUT
        condition = model.condition(labels[items].masked_fill(dropped, config.num_classes))
        logits = forward(condition, rollout(step, noise(target, labels[items]), target))
        return F.cross_entropy(logits.flatten(0, 1), target.flatten()), {}

    def sheet(model: nn.Module, path: Path) -> None:
        from .sheets import sample_sheet

        assert isinstance(model, NARTransformer)
        sample_sheet(model, tokenizer, path)

    about = {
        "transformer": asdict(config),
        "dropout": dropout,
        "token_noise": token_noise,
        **rollout.about,
        **({"loop_starts": loop_starts} if marked else {}),
        "data": sha256(tokens.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
        **({"start": weights_digest(start).hexdigest()} if start else {}),
    }
    train(
        model,
        loss_of,
        settings,
        folder,
        sheet,
        memory=rollout.memory,
        about=about,
        quiet=quiet,
        beside=tokenizer,
    )
    return model.eval()


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
        """Of the class of each item (B,) the one that has most tokens of (B, N) in common: (B,).

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


@torch.inference_mode()
def tokenize(pictures: Pictures, tokenizer: VQTokenizer, folder: Path, batch_size: int = 16) -> Tensor:
    """Codes of all pictures: (items, N) int64, kept in ``folder`` for the next time."""
    known = weights_digest(tokenizer, pictures.digest().encode())
    cache = folder / TOKENS.format(known.hexdigest()[:16])
    count = len(pictures)
    with suppress(CheckpointError, ValueError, TypeError):  # not there, or damaged
        kept = torch.from_numpy(np.array(read_array(cache)).astype(np.int64))
        if (
            kept.ndim == 2
            and len(kept) == count
            and 0 <= kept.min() <= kept.max() < tokenizer.config.codebook_size
        ):
            return kept
    codes = torch.cat(
        [
            tokenizer.encode(pictures.batch(np.arange(start, min(start + batch_size, count))))
            for start in range(0, count, batch_size)
        ]
    )
    buffer = io.BytesIO()
    np.save(buffer, codes.numpy().astype(np.int32))
    write_atomic(cache, buffer.getvalue(), overwrite=True)
    return codes


@torch.no_grad()
def mark_starts(tokens: Tensor, starts: int, tokenizer: VQTokenizer) -> Tensor:
    """Let the first token of a clip say where its loop begins.

    The first corner mostly shows the background, the same one wherever the loop begins. Where it begins is
    then decided where something moves, by several cells of a frontier at once and by each for itself, and
    the clip mixes two beginnings. With first tokens that differ the very first draw decides.

    Args:
        tokens: (clips * starts, N) int64, the starts of a clip one after the other.
        starts: of a clip.
        tokenizer: whose codes they are. Codes close to each other look much the same.

    Returns:
        The same tokens, but a first one that an earlier start of the clip has gives way to the closest code
        that no start of the clip has.

    Raises:
        UsageError: a clip has more starts than there are codes.
    """
    codes = tokenizer.quantize(torch.arange(tokenizer.config.codebook_size))
    if starts > len(codes):
        raise UsageError(
            f"--loop-starts is {starts}, and the tokenizer has {len(codes)} codes.", "Give fewer starts."
        )
    marked = tokens.clone()
    for first in marked[:, 0].view(-1, starts):
        for place in range(1, starts):
            if (first[:place] == first[place]).any():
                distance = (codes - codes[first[place]]).norm(dim=1)
                distance[first] = torch.inf
                first[place] = distance.argmin()
    return marked


def weights_digest(model: nn.Module, before: bytes = b"") -> Any:
    """SHA-256 of some bytes and all weights after them."""
    known = sha256(before)
    for tensor in model.state_dict().values():
        known.update(tensor.float().numpy().tobytes())
    return known
