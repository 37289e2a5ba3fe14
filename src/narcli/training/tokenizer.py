"""Training of the VQ tokenizer: reconstruction (L1, L2, gradients) and vector quantisation losses.

After LlamaGen (arXiv 2406.06525, section 2.1), without its adversarial and perceptual terms, which small
pictures on plain backgrounds do not need. Unused codes are re-seeded from features. Clips are learned in
pieces, one slice of the grid each.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..models.vq import VQConfig, VQTokenizer
from .data import Pictures
from .loop import TrainSettings, batch_indices, train
from .tokens import tokenize, weights_digest

#: Weight of the pull of features towards their codes (VQ-VAE's beta).
COMMITMENT = 0.25
#: Steps between re-seedings; a code unused for that long is dead.
RESEED_EVERY = 40


def train_tokenizer(
    pictures: Pictures,
    config: VQConfig,
    settings: TrainSettings,
    folder: Path,
    start: VQTokenizer | None = None,
    quiet: bool = False,
) -> VQTokenizer:
    """Train a tokenizer on pictures or clips; ``loop.train`` lists the files in ``folder``.

    Args:
        pictures: H and W multiples of ``config.downsampling``, the frames of clips of ``config.frames``.
        config: sizes of the network; those of ``start``, perhaps with more ``decoder_blocks``.
        settings: of the optimisation.
        folder: folder of the run.
        start: tokenizer to continue. Only its decoder learns: pictures keep their codes, and transformers
            that were trained on them fit the result. Blocks that it lacks begin without effect.
        quiet: no progress display.

    Raises:
        UsageError: ``start`` has other sizes, or more blocks than ``config``.
    """
    lacks = 0
    if start is not None:
        lacks = config.decoder_blocks - start.config.decoder_blocks
        if lacks < 0 or replace(start.config, decoder_blocks=config.decoder_blocks) != config:
            raise UsageError(
                f"`start` has the sizes {start.config}, expected {config} or fewer `decoder_blocks`.",
                "Give the sizes of `start`.",
            )
    pictures = pictures.pieces(config.frames) if pictures.frames else pictures
    torch.manual_seed(settings.seed)
    model = VQTokenizer(config)
    nn.init.normal_(model.quantize.embedding.weight)
    if start is not None:
        model.load_state_dict(start.state_dict(), strict=not lacks)
        for block in model.decoder.mid[len(model.decoder.mid) - lacks :]:
            for parameter in block.get_submodule("conv2").parameters():
                nn.init.zeros_(parameter)
        for part in (model.encoder, model.quant_conv, model.quantize):
            part.requires_grad_(False)
        fixed = tokenize(pictures, start, folder)
    features_of, decode_vectors = model.features, model.decode_vectors
    if settings.compile:
        features_of, decode_vectors = torch.compile(features_of), torch.compile(decode_vectors)
    used = torch.zeros(config.codebook_size, dtype=torch.bool)
    last_features = torch.empty(0)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        nonlocal last_features
        items = batch_indices(len(pictures), settings, step)
        images = pictures.batch(items)
        if start is not None:
            side = config.downsampling
            grid = (*[1] * bool(pictures.frames), images.shape[-2] // side, images.shape[-1] // side)
            return reconstruction(decode_vectors(model.quantize(fixed[items]), grid), images)
        features = features_of(images)
        flat = features.detach().float().flatten(0, -2)
        codes = model.quantize.nearest(flat)
        used[codes] = True
        last_features = flat
        chosen = model.quantize(codes).view_as(features)
        # Straight through: the decoder's gradient passes the quantisation unchanged.
        vectors = features + (chosen - features).detach()
        decoded = decode_vectors(vectors.flatten(1, -2), features.shape[1:-1])
        difference, figures = reconstruction(decoded, images)
        to_codes = F.mse_loss(chosen, features.detach().float())
        to_features = F.mse_loss(features.float(), chosen.detach())
        loss = difference + to_codes + COMMITMENT * to_features
        return loss, figures | {"codes": codes.unique().numel()}

    def reseed(step: int) -> None:
        # Codes stay fixed in the last fifth, so that the decoder adapts to them.
        if start is not None or (step + 1) % RESEED_EVERY or step > settings.steps * 0.8:
            return
        dead = (~used).nonzero().flatten()
        picks = torch.randint(len(last_features), (len(dead),))
        model.quantize.embedding.weight[dead] = last_features[picks]
        used.zero_()

    def sheet(model: nn.Module, path: Path) -> None:
        from .sheets import reconstruction_sheet

        assert isinstance(model, VQTokenizer)
        reconstruction_sheet(model, pictures, path)

    sizes = asdict(config)
    if not config.decoder_blocks:
        del sizes["decoder_blocks"]  # which earlier runs do not have
    about = {"tokenizer": sizes, "data": pictures.digest()}
    if start is not None:
        about["start"] = weights_digest(start).hexdigest()
    train(model, loss_of, settings, folder, sheet, reseed, {"used": used}, about, quiet=quiet)
    return model.eval()


def reconstruction(decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Sum L1, squared and gradient differences; also return the mean PSNR of items in dB."""
    error = decoded.float() - images
    squared = error.square()
    loss = error.abs().mean() + 4 * squared.mean() + edges(decoded.float(), images)
    # Peak-to-peak is 2 in [-1, 1].
    psnr = 10 * torch.log10(4 / squared.detach().flatten(1).mean(1).clamp_min(1e-10)).mean()
    return loss, {"psnr": psnr}


def edges(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical gradients and, for clips, those in time."""
    error = decoded - images  # (B, 3, [frames,] H, W)
    return torch.stack([error.diff(dim=axis).abs().mean() for axis in range(2, error.dim())]).sum()


@torch.inference_mode()
def psnr(model: VQTokenizer, pictures: Pictures, batch_size: int = 16) -> Tensor:
    """Measure the PSNR of each picture or clip in dB: float32 (N,); the tokenizer must be float32.

    Decoded values are clamped to [-1, 1] and rounded to 8 bits, as in files.
    """
    values = []
    for start in range(0, len(pictures), batch_size):
        images = pictures.batch(np.arange(start, min(start + batch_size, len(pictures))))
        features = model.features(images)
        codes = model.quantize.nearest(features.flatten(1, -2))
        decoded = model.decode(codes, features.shape[1:-1]).float().clamp(-1, 1)
        decoded = ((decoded + 1) * 127.5).round() / 127.5 - 1
        values.append(10 * torch.log10(4 / (decoded - images).square().flatten(1).mean(1).clamp_min(1e-10)))
    return torch.cat(values)
