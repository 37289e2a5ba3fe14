"""Text features: a T5 encoder, and the form in which the transformer takes what it says (spec 6).

The encoder is a folder that ``transformers`` saved: ``google/flan-t5-xl``, of which the decoder is left
alone, or a small one that narcli trained. Each prompt is encoded by itself, without padding, so that its
features do not depend on the prompts beside it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..configs import check, whole
from ..containers import read_tensors
from ..errors import CheckpointError, first_line, is_shortage


@dataclass(frozen=True)
class Encoded:
    """What an encoder said of a prompt.

    Args:
        features: (n, width), n tokens with the end token.
        dropped: the end of the prompt that did not fit, or "".
    """

    features: Tensor
    dropped: str = ""


@dataclass(frozen=True)
class T5Encoder:
    """A T5 encoder and its tokenizer, of ``transformers``."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype | None = torch.bfloat16, device: str | torch.device = "cpu"
    ) -> T5Encoder:
        """Load a folder that ``transformers`` saved, for inference.

        Args:
            folder: of a T5 encoder, or of a whole T5, of which the decoder is left alone.
            dtype: of the weights and features; None keeps the stored one.
            device: where it runs.

        Raises:
            CheckpointError: not a T5 folder, or not a whole one.
        """
        _check(folder)
        with _quiet():
            from transformers import AutoTokenizer, T5EncoderModel

            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
                loaded: Any = T5EncoderModel.from_pretrained(
                    folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
                )
            except Exception as error:  # transformers and what it builds on have many
                if is_shortage(error):
                    raise
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
                raise CheckpointError(
                    f"The text encoder in {folder} cannot be loaded: {reason}",
                    "Get the folder again, whole, as transformers saved it.",
                ) from error
        model, report = loaded
        absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if absent:  # transformers would go on with random numbers in their place
            raise CheckpointError(
                f"The text encoder in {folder} lacks {len(absent)} tensors, such as {absent[0]}.",
                "It is damaged, or not a T5 encoder.",
            )
        return cls(model.to(device).eval(), tokenizer)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Save it as ``load`` reads it; ``dtype`` of the stored tensors, None keeps them."""
        with _quiet():
            model = self.model if dtype is None else copy.deepcopy(self.model).to(dtype)
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    @property
    def width(self) -> int:
        """Of the features."""
        return int(self.model.config.d_model)

    @torch.inference_mode()
    def encode(self, text: str, tokens: int) -> Encoded:
        """Encode a cleaned prompt, cut to ``tokens`` tokens with the end token."""
        try:
            ids, rest = split(self.tokenizer, text, tokens)
            dropped = self.tokenizer.decode(rest, skip_special_tokens=True) if rest else ""
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise CheckpointError(  # its files may say anything, and transformers believes them
                f"The text encoder's tokenizer cannot read a prompt ({first_line(error)}).",
                "Get its folder again, whole, as transformers saved it.",
            ) from error
        if not 0 <= min(ids, default=-1) <= max(ids, default=-1) < self.model.config.vocab_size:
            raise CheckpointError(
                f"The text encoder has {self.model.config.vocab_size} token embeddings, fewer than "
                "its tokenizer uses.",
                "Its files do not belong together.",
            )
        rows = torch.tensor([ids], device=self.model.device)
        features = self.model(input_ids=rows).last_hidden_state[0]
        return Encoded(features.cpu(), dropped.strip())


def split(tokenizer: Any, text: str, tokens: int) -> tuple[list[int], list[int]]:
    """The ids that a prompt is encoded from, the end token's last, and the ids that do not fit."""
    ids = tokenizer(text, verbose=False).input_ids
    if len(ids) <= tokens:
        return ids, []
    return [*ids[: tokens - 1], ids[-1]], ids[tokens - 1 : -1]


def left_pad(features: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """Features of several prompts as one condition: the tokens at the end, zeros before them.

    Args:
        features: B times (n, width), n at most ``tokens``.
        tokens: C, the condition tokens of the transformer.

    Returns:
        The condition (B, C, width), and (B, C) bool, true where it is padding.
    """
    condition = torch.stack([F.pad(rows, (0, 0, tokens - len(rows), 0)) for rows in features])
    lengths = torch.tensor([len(rows) for rows in features])
    return condition, torch.arange(tokens) < (tokens - lengths)[:, None]


def check_encoder(folder: Path) -> None:
    """Compare the tensors of a folder that ``transformers`` saved with those that its encoder has, by shape.

    Raises:
        CheckpointError: not a T5 folder, or tensors that are missing or misshapen.
    """
    _check(folder)
    with _quiet():
        from transformers import T5Config, T5EncoderModel

        try:
            with torch.device("meta"):
                expected = T5EncoderModel(T5Config.from_pretrained(folder)).state_dict()
        except Exception as error:  # transformers has many
            raise CheckpointError(f"{folder / 'config.json'} is not usable: {first_line(error)}.") from error
    endings = (".safetensors", ".bin")
    tensors = {
        name: tensor
        for path in sorted(folder.iterdir())
        if path.suffix in endings and "model" in path.name
        for name, tensor in read_tensors(path).items()
    }
    tied = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
    for name, tensor in expected.items():
        stored = tensors.get(tied if name in ("shared.weight", "encoder.embed_tokens.weight") else name)
        if stored is None or stored.shape != tensor.shape:
            found = (
                "lacks"
                if stored is None
                else f"has {tuple(stored.shape)} instead of {tuple(tensor.shape)} as"
            )
            raise CheckpointError(
                f"The text encoder in {folder} {found} {name}.", "It is damaged, or not a T5 encoder."
            )


_SIZES = {
    **{name: whole(1, 2**16) for name in ("d_model", "d_kv", "num_heads")},
    **{name: whole(1, 2**20) for name in ("d_ff", "vocab_size")},
    **{name: whole(1, 1000) for name in ("num_layers", "num_decoder_layers")},
}


def _check(folder: Path) -> None:
    """Refuse what is not a folder of a T5 before transformers is imported, which takes seconds."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = said.get("model_type") if isinstance(said, dict) else None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(
            f"{folder} is not a text encoder: it has no readable config.json.",
            "Expected a folder such as google/flan-t5-xl, as transformers saves it.",
        ) from None
    if kind != "t5":
        raise CheckpointError(
            f"{folder} holds a model of the type {str(kind)[:40]!r}, expected a T5 text encoder."
        )
    # transformers would build whatever is said, before it looks at the tensors.
    check(folder / "config.json", "", _SIZES, said)
    by_bytes = False
    if (tokenizer := folder / "tokenizer_config.json").is_file():
        try:
            said = json.loads(tokenizer.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise CheckpointError(f"{tokenizer} is not valid JSON.", "Get the original file again.")
        check(tokenizer, "", {"extra_ids": whole(0, 1000)}, said)
        by_bytes = "ByT5Tokenizer" in str(said.get("tokenizer_class"))
    if not by_bytes and not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise CheckpointError(  # transformers would make up an empty vocabulary
            f"The text encoder in {folder} has no tokenizer (tokenizer.json or spiece.model).",
            "Get the folder again, whole, as transformers saved it.",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No chatter and no bars of ``transformers``; as it was afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
