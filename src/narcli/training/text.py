"""Training of a transformer and its text encoder together, on pictures with captions.

The released models read a large T5 that was trained on text alone. A small model has none to start from, so a
small T5 that reads bytes learns together with the transformer, whose blocks start from a model of
classes: only the class embedding gives way to the captions. The loss is that of ``nar``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, UsageError
from ..models.text import T5Encoder, left_pad
from ..models.transformer import NARTransformer, TextCondition, TransformerConfig
from ..models.vq import VQTokenizer
from ..prompts import parse_prompt
from .loop import TrainSettings, batch_indices, train
from .nar import LABEL_DROPOUT, Noise, weights_digest

CAPTIONS = "captions.tsv"
HEAD_DIM = 64  # of the encoder, as in the released T5s


def load_captions(folder: Path, count: int) -> list[list[str]]:
    """Cleaned captions of pictures: line by line those of each, tabs between them.

    Args:
        folder: with a file ``captions.tsv``.
        count: of the pictures.

    Raises:
        UsageError: no such file.
        CheckpointError: not UTF-8, not as many lines as pictures, or a caption is unusable.
    """
    path = folder / CAPTIONS
    if not path.is_file():
        raise UsageError(
            f"There is no {CAPTIONS} in {str(folder)!r}.",
            "Write a line for each picture, tabs between captions.",
        )
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
    if len(lines) != count:
        raise CheckpointError(f"{path} has {len(lines)} lines, and there are {count} pictures.")
    try:
        return [[parse_prompt(text).cleaned for text in line.split("\t")] for line in lines]
    except UsageError as error:
        raise CheckpointError(f"{path} has an unusable caption. {error.message}", error.hint) from None


def byte_encoder(width: int, layers: int) -> T5Encoder:
    """A T5 encoder with fresh weights that reads UTF-8 bytes, which takes no vocabulary file.

    Args:
        width: of the model and its features, a multiple of ``HEAD_DIM``.
        layers: each with attention and a gated feed-forward twice as wide.
    """
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    letters = ByT5Tokenizer(extra_ids=0)
    sizes = T5Config(
        vocab_size=len(letters), d_model=width, d_kv=HEAD_DIM, num_heads=width // HEAD_DIM, num_layers=layers,
        d_ff=2 * width, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return T5Encoder(T5EncoderModel(sizes), letters)


class TextNAR(nn.Module):
    """What is trained: the transformer and the encoder of its captions."""

    def __init__(self, nar: NARTransformer, encoder: nn.Module) -> None:
        super().__init__()
        self.nar, self.encoder = nar, encoder

    def features(self, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Token ids of B captions -> the condition (B, C, width), left-padded, and its padding (B, C)."""
        rows = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
        lengths = torch.tensor([len(row) for row in ids])
        seen = (torch.arange(rows.shape[1]) < lengths[:, None]).long()
        encoded = self.encoder(input_ids=rows, attention_mask=seen).last_hidden_state
        valid = [row[:length] for row, length in zip(encoded, lengths.tolist(), strict=True)]
        return left_pad(valid, self.nar.config.condition_tokens)


def begin(start: NARTransformer, config: TransformerConfig, dropout: float = 0.0) -> NARTransformer:
    """A model of text with the blocks, heads and token embeddings of a model of classes.

    Args:
        start: the model of classes; its sizes are those of ``config`` but for the condition.
        config: of the new model.
        dropout: as ``train_nar``.
    """
    model = NARTransformer(config, dropout)
    model.init_weights()
    nn.init.normal_(cast(TextCondition, model.condition).uncond_embedding)  # features have that size, too
    kept = {name: value for name, value in start.state_dict().items() if not name.startswith("condition.")}
    if config.position == "absolute":
        places = kept["position_embedding"]
        # Every caption token begins where the class token was.
        kept["position_embedding"] = torch.cat(
            [places[:, :1].expand(-1, config.condition_tokens, -1), places[:, 1:]], 1
        )
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not unexpected and all(name.startswith("condition.") for name in missing)
    return model


def train_text(
    tokens: Tensor,
    captions: Sequence[Sequence[str]],
    groups: Tensor,
    tokenizer: VQTokenizer,
    start: NARTransformer,
    encoder: T5Encoder,
    condition_tokens: int,
    settings: TrainSettings,
    folder: Path,
    dropout: float = 0.1,
    token_noise: float = 0.0,
    quiet: bool = False,
) -> tuple[NARTransformer, T5Encoder]:
    """Train a transformer on captions, and its encoder; see ``loop.train`` for what ``folder`` keeps.

    Args:
        tokens: (items, N) int64 codes in raster order.
        captions: cleaned ones of each item, of which each step takes one at random.
        groups: (items,) int64, equal for pictures that are much alike; for ``token_noise``.
        tokenizer: decodes the sample sheets.
        start: the model of classes whose blocks it starts from.
        encoder: trained with it, in place.
        condition_tokens: longest caption in tokens of the encoder, the end token counted.
        settings: of the optimisation.
        folder: where the run lives.
        dropout: on token embeddings, attention outputs and feed-forward outputs, in [0, 1).
        token_noise: largest share of a picture's input tokens that is exchanged, in [0, 1]; see ``Noise``.
        quiet: no progress display.

    Raises:
        UsageError: a caption is longer than that.
    """
    torch.manual_seed(settings.seed)
    ids = [[torch.tensor(encoder.tokenizer(text).input_ids) for text in texts] for texts in captions]
    longest = max(len(row) for rows in ids for row in rows)
    if longest > condition_tokens:
        raise UsageError(
            f"The longest caption has {longest} tokens, and --caption-tokens is {condition_tokens}.",
            f"Give --caption-tokens {longest}, or shorten it.",
        )
    config = replace(
        start.config, condition="text", num_classes=0, condition_tokens=condition_tokens,
        caption_dim=encoder.width,
    )  # fmt: skip
    noise = Noise(tokens, groups, token_noise)
    model = TextNAR(begin(start, config, dropout), encoder.model).train()
    nar, condition = model.nar, cast(TextCondition, model.nar.condition)
    forward = torch.compile(nar.forward_train) if settings.compile else nar.forward_train

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        items = torch.from_numpy(batch_indices(len(tokens), settings, step))
        picks = torch.rand(len(items)).tolist()
        features, padding = model.features(
            [ids[item][int(pick * len(ids[item]))] for item, pick in zip(items.tolist(), picks, strict=True)]
        )
        dropped = torch.rand(len(items), 1, 1) < LABEL_DROPOUT
        features = torch.where(dropped, condition.uncond_embedding.to(features.dtype), features)
        target = tokens[items]
        logits = forward(condition(features), noise(target, groups[items]), padding)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten()), {}

    def sheet(trained: nn.Module, path: Path) -> None:
        from .sheets import sample_sheet

        assert isinstance(trained, TextNAR)
        picks = torch.linspace(0, len(ids) - 1, 40).long().tolist()
        with torch.inference_mode():
            features, padding = trained.features([ids[item][0] for item in picks])
        sample_sheet(trained.nar, tokenizer, path, features, padding)

    known = sha256(tokens.numpy().tobytes() + groups.numpy().tobytes() + repr(captions).encode())
    about: dict[str, Any] = {
        "transformer": asdict(config),
        "encoder": {name: getattr(encoder.model.config, name) for name in ("d_model", "num_layers", "d_ff")},
        "start": weights_digest(start).hexdigest(),
        "dropout": dropout,
        "token_noise": token_noise,
        "data": known.hexdigest(),
    }
    train(model, loss_of, settings, folder, sheet, about=about, quiet=quiet)
    model.eval()
    return nar, encoder
