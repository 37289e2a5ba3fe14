"""Training of a transformer and its text encoder together, on pictures with captions.

The released models read a large T5 that was trained on text alone. Here a small T5 that reads bytes first
learns which caption belongs to which picture. Then it learns together with the transformer, whose blocks
start from a model of classes: captions replace the class embedding. A model of text is continued unchanged.
The loss is that of ``nar``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.config import ENCODER
from ..checkpoints.text_encoder import T5Encoder, left_pad
from ..errors import UsageError
from ..models.blocks import TextCondition, TransformerConfig
from ..models.transformer import NARTransformer
from ..models.vq import VQTokenizer
from ..sampling import sample
from .captions import CaptionNoise, SoftTargets, pick
from .loop import TrainSettings, batch_indices, train
from .noise import LABEL_DROPOUT, ROLLOUT_SETTINGS, Rollouts
from .tokens import weights_digest

HEAD_DIM = 64  # of the encoder, as in the released T5s


READER_BATCH, READER_RATE = 128, 2e-3  # of the encoder's own training


LOOKS, SIDE = 256, 16  # numbers that describe a picture, from thumbnails of SIDE x SIDE pixels


def byte_encoder(width: int, layers: int) -> T5Encoder:
    """Make a T5 encoder with fresh weights that reads UTF-8 bytes, without a vocabulary file.

    Args:
        width: of the model and its features, a multiple of ``HEAD_DIM``.
        layers: layers of attention and a gated feed-forward twice as wide.
    """
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    letters = ByT5Tokenizer(extra_ids=0)
    sizes = T5Config(
        vocab_size=len(letters), d_model=width, d_kv=HEAD_DIM, num_heads=width // HEAD_DIM, num_layers=layers,
        d_ff=2 * width, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return T5Encoder(T5EncoderModel(sizes), letters)


def looks_of(images: np.ndarray) -> Tensor:
    """Describe pictures by numbers that distinguish them: (N, H, W, 3) uint8 -> (N, LOOKS).

    They are principal components of thumbnails, of equal variance, so that details count. Rows have norm 1.
    """
    small = [
        F.adaptive_avg_pool2d(torch.from_numpy(np.array(part)).movedim(-1, 1).float() / 255, SIDE).flatten(1)
        for part in np.array_split(images, -(-len(images) // 256))
    ]
    thumbnails = torch.cat(small)
    thumbnails -= thumbnails.mean(0)
    variances, directions = torch.linalg.eigh(thumbnails.T @ thumbnails / len(thumbnails))
    variances, directions = variances[-LOOKS:], directions[:, -LOOKS:]
    return F.normalize(thumbnails @ directions * (variances + 1e-6).rsqrt(), dim=1)


class Reader(nn.Module):
    """An encoder that finds the picture of a caption."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.look = nn.Linear(encoder.width, LOOKS)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, ids: Sequence[Tensor], looks: Tensor) -> Tensor:
        """Compare B captions (token ids) with all pictures, (N, LOOKS): logits (B, N)."""
        encoded, seen = encode(self.encoder, ids)
        mean = (encoded.float() * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        vectors = F.normalize(self.look(mean).float(), dim=-1)
        return self.log_scale.exp() * (vectors @ looks.T)


def encode(encoder: nn.Module, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Encode token ids of B captions: last hidden states (B, L, width), and (B, L), 0 for padding."""
    rows = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
    lengths = torch.tensor([len(row) for row in ids])
    seen = (torch.arange(rows.shape[1]) < lengths[:, None]).long()
    return encoder(input_ids=rows, attention_mask=seen).last_hidden_state, seen


def learn_to_read(
    encoder: T5Encoder, ids: Sequence[Sequence[Tensor]], looks: Tensor, settings: TrainSettings, folder: Path,
    data: str, quiet: bool = False,
) -> None:  # fmt: skip
    """Train an encoder, in place, to find the picture of a caption.

    A step costs a small part of one of the transformer. Without this training the transformer learns to
    continue pictures from their own beginnings, before the encoder is of any use.

    Args:
        encoder: encoder to train.
        ids: token ids of the captions of each picture.
        looks: (N, LOOKS) of the pictures; see ``looks_of``.
        settings: of the optimisation.
        folder: folder of the run.
        data: hash of these pictures and captions.
        quiet: no progress display.
    """
    captions = [(item, row) for item, rows in enumerate(ids) for row in rows]
    lengths = torch.tensor([len(row) for _, row in captions])
    reader = Reader(encoder).train()
    count = min(settings.batch_size, len(captions))

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        # Captions of similar length leave hardly any padding.
        order = (lengths + 4 * torch.rand(len(lengths))).argsort()
        begin = int(torch.randint(1 - count, len(order), ()).clamp(0, len(order) - count))
        picked = [captions[index] for index in order[begin : begin + count].tolist()]
        logits = reader([row for _, row in picked], looks)
        return F.cross_entropy(logits, torch.tensor([item for item, _ in picked])), {}

    about = {"encoder": sizes_of(encoder), "data": data}
    # Components may have the other sign on another machine.
    memory = {"looks": looks}
    train(reader, loss_of, settings, folder, lambda *_: None, memory=memory, about=about, quiet=quiet)
    encoder.model.eval()


def sizes_of(encoder: T5Encoder) -> dict[str, int]:
    """Sizes of an encoder's network."""
    return {name: getattr(encoder.model.config, name) for name in ("d_model", "num_layers", "d_ff")}


class TextNAR(nn.Module):
    """The networks in training: a transformer and the encoder of its captions."""

    def __init__(self, nar: NARTransformer, encoder: nn.Module) -> None:
        super().__init__()
        self.nar, self.encoder = nar, encoder

    def features(self, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Make the condition of B captions (token ids): left-padded (B, C, width), and padding (B, C)."""
        encoded, _ = encode(self.encoder, ids)
        valid = [row[: len(there)] for row, there in zip(encoded, ids, strict=True)]
        return left_pad(valid, self.nar.config.condition_tokens)


def begin(start: NARTransformer, config: TransformerConfig, dropout: float = 0.0) -> NARTransformer:
    """Make a model of text from the blocks and token embeddings of a model of classes, or from one of text.

    Args:
        start: of the sizes of ``config``, except for the condition of a model of classes. A model of text may
            have more condition tokens; the last ones are kept, since captions are there.
        config: of the new model.
        dropout: as ``train_nar``.
    """
    model = NARTransformer(config, dropout)
    if start.config.condition == "text":
        kept = start.state_dict()
        dropped = start.config.condition_tokens - config.condition_tokens
        kept["condition.uncond_embedding"] = kept["condition.uncond_embedding"][dropped:]
        if config.position == "absolute":
            kept["position_embedding"] = kept["position_embedding"][:, dropped:]
        model.load_state_dict(kept)
        return model
    model.init_weights()
    condition = cast(TextCondition, model.condition)
    nn.init.normal_(condition.uncond_embedding)  # the size of features
    # As large as a class embedding, else position embeddings hide the captions.
    nn.init.normal_(condition.fc1.weight, std=config.caption_dim**-0.5)
    kept = {name: value for name, value in start.state_dict().items() if not name.startswith("condition.")}
    if config.position == "absolute":
        places = kept["position_embedding"]
        # Every caption token starts with the position of the class token.
        kept["position_embedding"] = torch.cat(
            [places[:, :1].expand(-1, config.condition_tokens, -1), places[:, 1:]], 1
        )
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not unexpected and all(name.startswith("condition.") for name in missing)
    return model


def train_text(
    tokens: Tensor,
    captions: Sequence[Sequence[str]],
    subjects: Tensor,
    looks: Tensor | None,
    tokenizer: VQTokenizer,
    start: NARTransformer,
    encoder: T5Encoder,
    condition_tokens: int,
    settings: TrainSettings,
    folder: Path,
    encoder_steps: int = 0,
    dropout: float = 0.1,
    token_noise: float = 0.0,
    code_smoothing: float = 0.0,
    rollouts: float = 0.0,
    quiet: bool = False,
) -> tuple[NARTransformer, T5Encoder]:
    """Train a transformer on captions, and its encoder; ``loop.train`` lists the files in ``folder``.

    Args:
        tokens: (items, N) int64 codes in raster order.
        captions: cleaned captions of each item; a step takes the first or, half of the time, any.
        subjects: (items,) int64, see ``CaptionNoise``.
        looks: (items, LOOKS), see ``looks_of``; None without ``encoder_steps``.
        tokenizer: decodes the sample sheets.
        start: model of classes to take blocks from, or model of text to continue.
        encoder: encoder to train with it, in place; a continued model's own.
        condition_tokens: longest caption in tokens of the encoder, with the end token.
        settings: of the optimisation.
        folder: folder of the run.
        encoder_steps: steps of ``learn_to_read``, before the transformer begins.
        dropout: on token embeddings, attention outputs and feed-forward outputs, in [0, 1).
        token_noise: largest share of a picture's input tokens that is exchanged, in [0, 2]; see
            ``CaptionNoise``.
        code_smoothing: in [0, 10], see ``SoftTargets``.
        rollouts: share of examples whose input the network drew, in [0, 1]; see ``nar.Rollouts``.
        quiet: no progress display.

    Raises:
        UsageError: a caption is too long, or ``rollouts`` or ``code_smoothing`` is out of range.
    """
    targets = SoftTargets(tokenizer, code_smoothing)
    torch.manual_seed(settings.seed)
    ids = [[torch.tensor(encoder.tokenizer(text).input_ids) for text in texts] for texts in captions]
    longest = max(len(row) for rows in ids for row in rows)
    goes_on = start.config.condition == "text"
    if longest > condition_tokens:
        raise UsageError(
            f"The longest caption has {longest} tokens, and "
            f"{'the model takes' if goes_on else '`caption_tokens` is'} {condition_tokens}.",
            "Shorten it." if goes_on else f"Give `caption_tokens={longest}`, or shorten it.",
        )
    data = sha256(tokens.numpy().tobytes() + repr(captions).encode()).hexdigest()
    digest = weights_digest(start)
    if goes_on:
        digest = weights_digest(encoder.model, digest.digest())
    if encoder_steps:
        assert looks is not None
        reading = replace(
            settings, steps=encoder_steps, batch_size=READER_BATCH, learning_rate=READER_RATE, muon=False,
            compile=False,
        )  # fmt: skip
        learn_to_read(encoder, ids, looks, reading, folder / ENCODER, data, quiet)
        torch.manual_seed(settings.seed)  # whether or not that went on from a checkpoint
    config = replace(
        start.config, condition="text", num_classes=0, condition_tokens=condition_tokens,
        caption_dim=encoder.width,
    )  # fmt: skip
    noise = CaptionNoise(tokens, subjects, token_noise)
    model = TextNAR(begin(start, config, dropout), encoder.model).train()
    nar, condition = model.nar, cast(TextCondition, model.nar.condition)
    forward = torch.compile(nar.forward_train) if settings.compile else nar.forward_train

    def features_of(items: Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.rand(len(items)).tolist()
        chosen = [pick(ids[item], number) for item, number in zip(items.tolist(), numbers, strict=True)]
        return model.features(chosen)

    def sampled(network: NARTransformer, items: Tensor, seeds: Tensor) -> Tensor:
        features, padding = features_of(items)
        return sample(network, features.bfloat16(), seeds.tolist(), ROLLOUT_SETTINGS, padding)

    rollout = Rollouts(nar, tokens, sampled, settings, rollouts)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        items = torch.from_numpy(batch_indices(len(tokens), settings, step))
        features, padding = features_of(items)
        dropped = torch.rand(len(items), 1, 1) < LABEL_DROPOUT
        features = torch.where(dropped, condition.uncond_embedding.to(features.dtype), features)
        target = tokens[items]
        logits = forward(condition(features), rollout(step, noise(items), target), padding)
        return targets.loss(logits.flatten(0, 1), target.flatten()), {}

    def sheet(trained: nn.Module, path: Path) -> None:
        from .sheets import sample_sheet

        assert isinstance(trained, TextNAR)
        picks = torch.linspace(0, len(ids) - 1, 40).long().tolist()
        with torch.inference_mode():
            features, padding = trained.features([ids[item][0] for item in picks])
        sample_sheet(trained.nar, tokenizer, path, features, padding)

    about: dict[str, Any] = {
        "transformer": asdict(config),
        "encoder": sizes_of(encoder) | {"steps": encoder_steps},
        "start": digest.hexdigest(),
        "dropout": dropout,
        "token_noise": token_noise,
        **({"code_smoothing": code_smoothing} if code_smoothing else {}),
        **rollout.about,
        "data": data,
        "subjects": sha256(noise.subjects.numpy().tobytes()).hexdigest(),
    }
    # A T5 does not scale its attention: at the transformer's rate its queries grew 16 times.
    train(
        model,
        loss_of,
        settings,
        folder,
        sheet,
        memory=rollout.memory,
        about=about,
        slow="encoder.",
        quiet=quiet,
        beside=tokenizer,
    )
    model.eval()
    return nar, encoder
