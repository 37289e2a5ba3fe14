"""Training of the transformer with teacher forcing (arXiv 2503.10696, section 3.3).

One forward pass over the condition and all tokens, under the mask that lets every cell see the cells of
its own and earlier steps, gives every head's prediction of every cell; one cross-entropy trains them all.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.transformer import NARTransformer, TransformerConfig
from ..models.vq import VQTokenizer
from ..writers import write_atomic
from .data import Pictures
from .loop import TrainSettings, batch_indices, train

#: Share of labels replaced by the unconditional one, for guidance.
LABEL_DROPOUT = 0.1


def train_nar(
    tokens: Tensor,
    labels: Tensor,
    tokenizer: VQTokenizer,
    config: TransformerConfig,
    settings: TrainSettings,
    folder: Path,
    start: NARTransformer | None = None,
    dropout: float = 0.1,
    token_noise: float = 0.0,
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
        dropout: on token embeddings, attention outputs and feed-forward outputs, in [0, 1).
        token_noise: largest share of a picture's input tokens that is exchanged, in [0, 2]; see ``Noise``.
        quiet: no progress display.
    """
    torch.manual_seed(settings.seed)
    noise = Noise(tokens, labels, token_noise)
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

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        indices = torch.from_numpy(batch_indices(len(tokens), settings, step))
        target = tokens[indices]
        dropped = torch.rand(len(target)) < LABEL_DROPOUT
        condition = model.condition(labels[indices].masked_fill(dropped, config.num_classes))
        logits = forward(condition, noise(target, labels[indices]))
        return F.cross_entropy(logits.flatten(0, 1), target.flatten()), {}

    def sheet(model: nn.Module, path: Path) -> None:
        from .sheets import sample_sheet

        assert isinstance(model, NARTransformer)
        sample_sheet(model, tokenizer, path)

    about = {
        "transformer": asdict(config),
        "dropout": dropout,
        "token_noise": token_noise,
        "data": sha256(tokens.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
        **({"start": weights_digest(start).hexdigest()} if start else {}),
    }
    train(model, loss_of, settings, folder, sheet, about=about, quiet=quiet)
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
    """

    def __init__(self, tokens: Tensor, labels: Tensor, most: float) -> None:
        self.most = most
        order, self.start, self.count = grouped(labels)
        self.sorted = tokens[order]

    def __call__(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """(B, N) tokens of (B,) labels -> (B, N)."""
        if not self.most:
            return tokens
        shape = tokens.shape
        siblings = self.start[labels, None] + (torch.rand(shape) * self.count[labels, None]).long()
        anyone = torch.randint(len(self.sorted), shape)
        donors = torch.where(torch.rand(shape) < 0.5, siblings, anyone)
        return exchange(tokens, self.sorted[donors, torch.arange(shape[1])], self.most)


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
    cache = folder / f"tokens-{known.hexdigest()[:16]}.npy"
    if cache.is_file():
        return torch.from_numpy(np.load(cache).astype(np.int64))
    count = len(pictures)
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


def weights_digest(model: nn.Module, before: bytes = b"") -> Any:
    """SHA-256 of some bytes and all weights after them."""
    known = sha256(before)
    for tensor in model.state_dict().values():
        known.update(tensor.float().numpy().tobytes())
    return known
