"""Recipes of a training: all that was asked for, and the way from a folder of pictures to a saved model.

``TokenizerRecipe(data=..., output=...).run()`` trains, or goes on with the run in ``output``. No torch at
import.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checkpoints import config as configs
from ..checkpoints.formats.transformer import RULES as TRANSFORMER
from ..checkpoints.formats.vq import RULES as VQ
from ..errors import UsageError
from ..order import NAR
from . import start as starts

if TYPE_CHECKING:
    from ..models.blocks import TransformerConfig
    from ..models.transformer import NARTransformer
    from ..models.vq import VQConfig, VQTokenizer
    from .data import Pictures
    from .loop import TrainSettings

    #: The network that goes on, the tokenizer, sizes, class names, and default sampling settings.
    Table = str | Sequence[str] | None
    Plan = tuple[NARTransformer | None, VQTokenizer, TransformerConfig, Table, Mapping[str, float]]

FRAMES = 4  # frames of a slice of clips, as in the released video models


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fields of all trainings.

    Args:
        data: folder of pictures or clips; see ``load_pictures``.
        output: folder of the run, which goes on where it stopped.
        steps: optimiser steps in all.
        batch_size: pictures a step.
        learning_rate: peak; a cosine takes it to zero.
        save_every: steps between checkpoints and sample sheets.
        seed: of weights, data order, dropout and noise, in [0, 2**32).
        muon: use Muon for hidden matrices or, of a tokenizer, for convolutions.
        compile: use ``torch.compile``.
    """

    data: Path
    output: Path
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    save_every: int = 500
    seed: int = 0
    muon: bool = False
    compile: bool = False

    @property
    def result(self) -> Path:
        """Folder of the trained model."""
        return self.output / configs.RESULT

    def settings(self, **others: Any) -> TrainSettings:
        """Give the settings of the optimisation; others are named as in ``TrainSettings``."""
        from .loop import TrainSettings

        return TrainSettings(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            save_every=self.save_every, seed=self.seed, muon=self.muon, compile=self.compile, **others,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe(Recipe):
    """A training of a VQ tokenizer.

    Args:
        size: side of the pictures in pixels; needed for image files.
        channels: at the highest resolution, a multiple of 32.
        multipliers: factors of the channels, one a level; all levels but the last halve.
        blocks: residual blocks a level.
        patch: side in pixels of the patches stacked as channels.
        codes: size of the codebook.
        decoder_blocks: further residual blocks at the decoder's lowest resolution, in [0, 32]; None is 0, or
            as many as ``start`` has. Those that ``start`` lacks begin without effect.
        frames: frames of clips stacked as channels; None is ``FRAMES``, of clips.
        loop_starts: clips are loops, and are also learned from so many frames on.
        start: a tokenizer whose decoder alone learns on, in place of a new one.
        heldout: pictures to measure the PSNR on at the end.

    Raises:
        UsageError: ``channels`` is no multiple of 32.
    """

    batch_size: int = 16
    learning_rate: float = 8e-4
    size: int | None = None
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 1, 2)
    blocks: int = 1
    patch: int = 2
    codes: int = 4096
    decoder_blocks: int | None = None
    frames: int | None = None
    loop_starts: int = 1
    start: Path | None = None
    heldout: Path | None = None

    def __post_init__(self) -> None:
        if self.channels % 32:
            raise UsageError(
                f"`channels` is {self.channels}, expected a multiple of 32 (normalisation groups)."
            )

    def run(self, tell: Callable[[str], object] = warnings.warn, quiet: bool = False) -> float | None:
        """Train, and save the result; return its mean PSNR in dB on the pictures held out, if any.

        Args:
            tell: is told, a sentence each, of what may be a mistake.
            quiet: no progress display.

        Raises:
            UsageError: data, sizes or a tokenizer that do not go together.
            CheckpointError: a file that cannot be used, or another run in ``output``.
            NarError: the loss is not finite, or the disk is full.
            KeyboardInterrupt: after a signal; the last whole step's state is written first.
        """
        starts.check_output(self.output, self.data)
        from ..checkpoints.save import check_saveable, save_model
        from .data import load_pictures
        from .tokenizer import psnr, train_tokenizer
        from .tokens import grid_of

        pictures = load_pictures(self.data, self.size, tell).loops(self.loop_starts)
        if self.frames and not pictures.frames:
            raise UsageError(
                f"`frames` is {self.frames}, and {str(self.data)!r} holds no clips.", "Leave it out."
            )
        start = starts.vq_tokenizer(self.start) if self.start else None
        config = self._grown(start.config) if start else self._config(pictures)
        starts.check_sizes(VQ, asdict(config))
        grid_of(pictures, config)
        heldout = load_pictures(self.heldout, self.size, tell) if self.heldout else None
        if heldout:
            grid_of(heldout, config)
        check_saveable(self.result, tokenizer=config)
        settings = self.settings(weight_decay=0.01)
        model = train_tokenizer(pictures, config, settings, self.output, start, quiet)
        save_model(self.result, tokenizer=model, overwrite=True)
        return float(psnr(model, heldout).mean()) if heldout else None

    def _config(self, pictures: Pictures) -> VQConfig:
        from ..models.vq import VQConfig

        return VQConfig(
            self.channels, self.multipliers, self.blocks, self.channels * self.multipliers[-1], self.codes,
            patch=self.patch, frames=(self.frames or FRAMES) if pictures.frames else 1,
            decoder_blocks=self.decoder_blocks or 0,
        )  # fmt: skip

    def _grown(self, config: VQConfig) -> VQConfig:
        """Give the sizes of a tokenizer that goes on, with the blocks asked for."""
        blocks = config.decoder_blocks if self.decoder_blocks is None else self.decoder_blocks
        if blocks < config.decoder_blocks:
            raise UsageError(
                f"`decoder_blocks` is {blocks}, and {self.start} has {config.decoder_blocks}.",
                "Give as many or more.",
            )
        return replace(config, decoder_blocks=blocks)


@dataclass(frozen=True, kw_only=True)
class NARRecipe(Recipe):
    """Fields of all trainings of a transformer.

    Args:
        dropout: on tokens, attention and feed-forward outputs, in [0, 1).
        token_noise: largest share of input tokens exchanged for other pictures', in [0, 2]; see ``Noise``.
        rollouts: share of examples whose input the network drew, in [0, 1]; see ``Rollouts``.
    """

    dropout: float = 0.1
    token_noise: float = 0.0
    rollouts: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClassRecipe(NARRecipe):
    """A training of a class-conditional transformer.

    Args:
        tokenizer: a trained tokenizer, for a new model.
        start: a trained model of classes that goes on, with its sizes, tokenizer and class names.
        size: side of the pictures in pixels; needed for image files.
        dim: width of a new model.
        layers: of its trunk.
        heads: of its attention, each a multiple of 4 wide.
        ffn: hidden size of its feed-forward; None is 8/3 of ``dim``, up to a multiple of 64.
        order: order that it decodes in: ``nar``, ``raster`` or ``par:N``.
        position: ``rotary`` or ``absolute``; None is rotary, of clips absolute.
        loop_starts: clips are loops, and are also learned from so many frames on.
        classes: name of the class table of the labels; None takes the names of the data.

    Raises:
        UsageError: neither tokenizer nor start, or heads of another width.
    """

    tokenizer: Path | None = None
    start: Path | None = None
    size: int | None = None
    dim: int = 320
    layers: int = 6
    heads: int = 5
    ffn: int | None = None
    order: str = NAR
    position: Literal["rotary", "absolute"] | None = None
    loop_starts: int = 1
    classes: str | None = None

    def __post_init__(self) -> None:
        if not self.start and not self.tokenizer:
            raise UsageError("`tokenizer` is missing.", "Give it, or `start` to go on with a model.")
        if self.dim % self.heads or self.dim // self.heads % 4:
            raise UsageError(
                f"`dim={self.dim}` with `heads={self.heads}` gives heads of width {self.dim / self.heads:g}.",
                "Expected a multiple of 4.",
            )

    def run(self, tell: Callable[[str], object] = warnings.warn, quiet: bool = False) -> None:
        """Train, and save the result; arguments and errors as in ``TokenizerRecipe.run``."""
        starts.check_output(self.output, self.data)
        import torch

        from ..checkpoints.save import check_saveable, save_model
        from .data import load_pictures
        from .nar import train_nar, training_record
        from .tokens import tokenize

        pictures = load_pictures(self.data, self.size, tell).loops(self.loop_starts)
        if pictures.item_labels is None:
            message = f"The pictures in {str(self.data)!r} have no classes."
            raise UsageError(message, "Put them into folders named by class.")
        start, vq, config, table, defaults = (self._go_on if self.start else self._begin)(pictures)
        starts.warn_of_untrained(pictures, config.num_classes, tell)
        check_saveable(self.result, config, vq.config, table, defaults)
        record = None if self.start else training_record(pictures, vq, config, vars(self))
        tokens, labels = tokenize(pictures, vq, self.output), torch.from_numpy(pictures.item_labels)
        model = train_nar(
            tokens, labels, vq, config, self.settings(), self.output,
            start, loop_starts=self.loop_starts, dropout=self.dropout, token_noise=self.token_noise,
            rollouts=self.rollouts, quiet=quiet,
        )  # fmt: skip
        save_model(
            self.result, transformer=model, tokenizer=vq, classes=table, defaults=defaults,
            training=record, overwrite=True,
        )  # fmt: skip

    def _go_on(self, pictures: Pictures) -> Plan:
        from ..classes import load_table

        assert self.start
        folder = configs.result_of(self.start)
        kinds = ["video" if pictures.frames else "image"]
        start, vq, known = starts.load_start(folder, kinds, pictures, self.data)
        if start.config.num_classes < pictures.num_classes:
            raise UsageError(
                f"{folder} has {start.config.num_classes} classes, the labels {pictures.num_classes}.",
                "Train a new model.",
            )
        expected = [row.names[0] for row in load_table(known.classes).rows] if known.classes else []
        for label, (name, other) in enumerate(zip(pictures.names, expected, strict=False)):
            if name != other:
                raise UsageError(
                    f"Class {label} of {str(self.data)!r} is {name!r}, that of {folder} is {other!r}.",
                    "Give the pictures that it was trained on, or train a new model.",
                )
        return start, vq, start.config, known.classes, known.defaults

    def _begin(self, pictures: Pictures) -> Plan:
        from ..models.blocks import TransformerConfig, ffn_dim
        from .tokens import grid_of

        assert self.tokenizer
        if pictures.frames and self.position == "rotary":
            raise UsageError("`position` is rotary, which has two axes; clips have three.", "Leave it out.")
        count = starts.count_classes(pictures, self.classes, self.data)
        vq = starts.vq_tokenizer(self.tokenizer)
        starts.check_order(self.order, grid := grid_of(pictures, vq.config))
        config = TransformerConfig(
            grid, self.dim, self.layers, self.heads, vq.config.codebook_size,
            self.ffn or ffn_dim(self.dim, 64), num_classes=count,
            position=self.position or ("absolute" if pictures.frames else "rotary"), order=self.order,
        )  # fmt: skip
        starts.check_sizes(TRANSFORMER, asdict(config))
        table = self.classes or pictures.names or [f"class {n}" for n in range(count)]
        return None, vq, config, table, {"cfg_scale": 2.0}


@dataclass(frozen=True, kw_only=True)
class TextRecipe(NARRecipe):
    """A training of a transformer on captions, together with its text encoder.

    Args:
        start: a model of classes, whose blocks and tokenizer it takes, or a model of text that goes on.
        text_encoder: folder of a T5 to train, in place of a new one or of that of ``start``.
        encoder_dim: width of a new encoder, a multiple of 64.
        encoder_layers: of a new encoder.
        encoder_steps: steps in which a new encoder first learns which caption is of which picture.
        caption_tokens: longest caption in tokens of the encoder, the end token counted.
        code_smoothing: width of shared targets, in [0, 10]; see ``SoftTargets``.

    Raises:
        UsageError: ``encoder_dim`` is no multiple of 64.
    """

    start: Path
    text_encoder: Path | None = None
    encoder_dim: int = 256
    encoder_layers: int = 4
    encoder_steps: int = 1000
    caption_tokens: int = 80
    code_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.encoder_dim % 64:
            raise UsageError(
                f"`encoder_dim` is {self.encoder_dim}, expected a multiple of 64 (attention heads)."
            )

    @property
    def goes_on(self) -> bool:
        """Tell if ``start`` is a model of text, whose encoder learns on.

        Raises:
            CheckpointError: its config.json cannot be used.
        """
        file = configs.result_of(self.start) / configs.CONFIG
        return file.is_file() and configs.read_config(file).kind == "text"

    def run(self, tell: Callable[[str], object] = warnings.warn, quiet: bool = False) -> None:
        """Train, and save the result; arguments and errors as in ``TokenizerRecipe.run``."""
        starts.check_output(self.output, self.data)
        import numpy as np
        import torch

        from ..checkpoints.save import check_saveable, save_model
        from .captions import load_captions
        from .data import load_pictures
        from .text import byte_encoder, looks_of, train_text
        from .tokens import tokenize

        start, defaults = configs.result_of(self.start), {"cfg_scale": 2.0}
        pictures = load_pictures(self.data, tell=tell)
        captions = load_captions(self.data, len(pictures))
        blocks, vq, known = starts.load_start(start, ["image", "text"], pictures, self.data)
        own, caption_tokens = None, self.caption_tokens
        if known.kind == "text":
            most, defaults = blocks.config.condition_tokens, dict(known.defaults)
            caption_tokens = min(caption_tokens, most) if self.text_encoder else most
            own = starts.own_encoder(
                self.text_encoder or start / configs.TEXT_ENCODER, blocks.config.caption_dim
            )
        elif self.text_encoder:
            own = starts.own_encoder(self.text_encoder)
        if own and own.names:
            unknown = next((text for row in captions for text in row if text not in own.names.known), None)
            if unknown is not None:
                own = replace(own, names=None)
                tell(f"{unknown!r} is no name of the encoder: prompts of the result are read as they are.")
        encoder_steps = 0 if own else self.encoder_steps
        settings = self.settings()
        sizes = replace(
            blocks.config, condition="text", num_classes=0, condition_tokens=caption_tokens,
            caption_dim=own.width if own else self.encoder_dim,
        )  # fmt: skip
        starts.check_sizes(TRANSFORMER, asdict(sizes))
        check_saveable(self.result, sizes, vq.config, defaults=defaults)
        tokens = tokenize(pictures, vq, self.output)
        torch.manual_seed(self.seed)
        # Without labels every picture has a subject of its own.
        subjects = np.arange(len(pictures)) if pictures.labels is None else pictures.labels
        looks = looks_of(pictures.images) if encoder_steps else None
        model, encoder = train_text(
            tokens, captions, torch.from_numpy(subjects), looks, vq, blocks,
            own or byte_encoder(self.encoder_dim, self.encoder_layers), caption_tokens, settings,
            self.output, encoder_steps, dropout=self.dropout, token_noise=self.token_noise,
            code_smoothing=self.code_smoothing, rollouts=self.rollouts, quiet=quiet,
        )  # fmt: skip
        save_model(
            self.result, transformer=model, tokenizer=vq, text_encoder=encoder, defaults=defaults,
            overwrite=True,
        )  # fmt: skip
