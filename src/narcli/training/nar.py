"""Training of the transformer with teacher forcing (arXiv 2503.10696, section 3.3).

One forward pass over the condition and all tokens gives every head's prediction of every cell. Its mask lets
a cell see the cells of its own and earlier steps. One cross-entropy trains all heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import draw
from ..models.blocks import TransformerConfig
from ..models.transformer import NARTransformer
from ..models.vq import VQTokenizer
from ..sampling import sample
from .loop import TrainSettings, batch_indices, train
from .noise import LABEL_DROPOUT, ROLLOUT_SETTINGS, Noise, Rollouts
from .tokens import mark_starts, weights_digest

if TYPE_CHECKING:
    from .data import Pictures


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
    """Train a class-conditional transformer; ``loop.train`` lists the files in ``folder``.

    Args:
        tokens: (items, N) int64 codes in raster order.
        labels: (items,) int64.
        tokenizer: its codes initialise the token embeddings of a new network; it decodes the sample sheets.
        config: sizes of the network.
        settings: of the optimisation.
        folder: folder of the run.
        start: network of those sizes to continue from a copy; None makes a new one.
        loop_starts: items of each clip, one after the other; above 1 the first token tells the item, see
            ``mark_starts``.
        dropout: on token embeddings, attention outputs and feed-forward outputs, in [0, 1).
        token_noise: largest share of a picture's input tokens that is exchanged, in [0, 2]; see ``Noise``.
        rollouts: share of examples whose input the network drew, in [0, 1]; see ``Rollouts``.
        quiet: no progress display.

    Raises:
        UsageError: ``rollouts`` is out of range, or a clip has more starts than the tokenizer has codes.
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
            # Similar codes get similar embeddings, which the network then need not learn token by token.
            codes = tokenizer.quantize(torch.arange(config.vocab_size))
            spread = torch.randn(codes.shape[1], config.dim) * 0.02
            model.token_embedding.weight[: config.vocab_size] += codes @ spread
    model.train()
    forward = torch.compile(model.forward_train) if settings.compile else model.forward_train

    def sampled(network: NARTransformer, items: Tensor, seeds: Tensor) -> Tensor:
        fixed_tokens = tokens[items]
        fixed_tokens[:, 1 if marked else 0 :] = -1
        drawn = sample(
            network, labels[items], seeds.tolist(), ROLLOUT_SETTINGS, given=fixed_tokens, draw=draw
        )
        # A sample nearer to another picture of the class is dropped. With that picture as the target, the
        # network would draw its most frequent picture ever more often.
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


#: Fields of a training recipe that its record holds.
RECORDED = ("steps", "batch_size", "learning_rate", "muon", "seed", "dropout", "token_noise", "rollouts")


def training_record(
    pictures: Pictures, vq: VQTokenizer, config: TransformerConfig, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what two models must have in common to be compared: all but the order.

    Args:
        pictures: what it learns from.
        vq: the tokenizer.
        config: sizes of the network.
        settings: fields of the recipe; those of ``RECORDED`` count.

    Returns:
        Texts and numbers, for ``save_model``.
    """
    network = {name: getattr(config, name) for name in ("dim", "heads", "ffn_dim", "position")}
    tokens = {"data": pictures.digest(), "tokenizer": weights_digest(vq).hexdigest()}
    told = {name: settings[name] for name in RECORDED}
    return {**tokens, "layers": config.total_layers, **network, **told}
