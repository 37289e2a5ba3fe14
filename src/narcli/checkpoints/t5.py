"""T5 encoders as ``transformers`` saves them: sizes, tensors and tokenizer, checked before they are used."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, first_line, is_shortage
from ..media.textfiles import read_json
from ..rules import Rule, check, number, one_of, whole
from .containers import NUMBERS, read_tensors
from .text_tokenizer import read_tokenizer, tokenizer_files


def is_fault(error: BaseException) -> bool:
    """Tell an error, such as a panic of Rust, from an exception that ends the process."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def read_t5(folder: Path) -> tuple[Any, dict[str, Tensor], Any]:
    """Read a folder that ``transformers`` saved: the network on the device ``meta``, tensors, the tokenizer.

    Raises:
        CheckpointError: not a T5 folder, or an incomplete one.
    """
    with quiet():
        try:
            return *_network(folder), read_tokenizer(folder)
        except CheckpointError:
            raise
        except BaseException as error:  # transformers and what it builds on have many
            if is_shortage(error) or not is_fault(error):
                raise
            raise CheckpointError(
                f"The text encoder in {folder} cannot be loaded: {first_line(error)}",
                "Get the folder again, whole, as transformers saved it.",
            ) from error


def fill(
    model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, device: str | torch.device = "cpu"
) -> Any:
    """Give a network on the device ``meta`` its tensors, for inference; a ``dtype`` of None keeps theirs.

    Without a conversion this keeps the memory map. Tied tensors are converted once.
    """
    converted = {id(tensor): tensor.to(device, dtype or tensor.dtype) for tensor in tensors.values()}
    model.load_state_dict({name: converted[id(t)] for name, t in tensors.items()}, assign=True)
    model.tie_weights()
    return model.eval()


def save_t5(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Save a folder that ``read_t5`` reads, with tensors in ``dtype``; None keeps their format."""
    with quiet():
        (model if dtype is None else copy.deepcopy(model).to(dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


#: Keys read from an encoder's config.json; all others, such as code to fetch, are ignored.
_SIZES: Mapping[str, Rule] = {
    **{name: whole(1, 2**16) for name in ("d_model", "d_kv", "num_heads")},
    **{name: whole(1, 2**20) for name in ("d_ff", "vocab_size")},
    "num_layers": whole(1, 1000),
}
_DETAILS: Mapping[str, tuple[Rule, Any]] = {
    "relative_attention_num_buckets": (whole(4, 4096), 32),
    "relative_attention_max_distance": (whole(2, 2**20), 128),
    "layer_norm_epsilon": (number(0, 1), 1e-6),
    "dropout_rate": (number(0, 1), 0.1),
    "feed_forward_proj": (one_of(*("relu", "gelu", "gelu_new", "silu"),
                                 *("gated-relu", "gated-gelu", "gated-gelu_new", "gated-silu")), "relu"),
}  # fmt: skip


def read_sizes(folder: Path) -> dict[str, Any]:
    """Read the sizes of a T5 encoder from its config.json; ``dtype`` is the name of the stored format.

    Raises:
        CheckpointError: not a T5 folder, or an invalid value.
    """
    path = folder / "config.json"
    try:
        config = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} is not a text encoder: it has no readable config.json ({error.message})",
            "Expected a folder such as google/flan-t5-xl, as transformers saves it.",
        ) from None
    if (kind := config.get("model_type")) != "t5":
        raise CheckpointError(
            f"{folder} holds a model of the type {ascii(kind)[:40]}, expected a T5 text encoder."
        )
    values = {name: value for name, value in config.items() if value is not None}
    if absent := [name for name in _SIZES if name not in values]:
        raise CheckpointError(f"{path} lacks {absent[0]}.", "Get the original file again.")
    check(path, "", {**_SIZES, **{name: rule for name, (rule, _) in _DETAILS.items()}}, values)
    sizes = {name: values[name] for name in _SIZES}
    sizes |= {name: values.get(name, usual) for name, (_, usual) in _DETAILS.items()}
    if sizes["relative_attention_max_distance"] <= sizes["relative_attention_num_buckets"] // 4:
        raise CheckpointError(
            f"{path}: relative_attention_max_distance is {sizes['relative_attention_max_distance']}, "
            f"expected more than a quarter of the {sizes['relative_attention_num_buckets']} buckets."
        )
    gate, _, function = sizes["feed_forward_proj"].rpartition("-")
    function = "gelu_new" if sizes["feed_forward_proj"] == "gated-gelu" else function
    for name, implied in (("dense_act_fn", function), ("is_gated_act", bool(gate))):
        if values.get(name, implied) != implied:
            raise CheckpointError(
                f"{path}: {name} is {ascii(values[name])[:40]}, but feed_forward_proj is "
                f"{sizes['feed_forward_proj']!r}."
            )
    dtype = values.get("dtype", values.get("torch_dtype"))
    return sizes | ({"dtype": dtype} if isinstance(dtype, str) else {})


def _network(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Return the network on the device ``meta``, and its tensors: memory-mapped, all of them, checked."""
    sizes = read_sizes(folder)
    tokenizer_files(folder)
    from transformers import T5Config, T5EncoderModel

    sizes.pop("dtype", None)
    config_class: Any = T5Config  # mypy does not see the keywords of its parents
    attention = "sdpa" if getattr(T5EncoderModel, "_supports_sdpa", False) else "eager"
    config = config_class(
        **sizes, is_encoder_decoder=False, use_cache=False, attn_implementation=attention,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = T5EncoderModel(config)
    stored: dict[str, Tensor] = {}
    for path in _weights(folder):
        try:
            stored |= read_tensors(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"The text encoder in {folder} cannot be loaded: {error.message}", error.hint
            ) from None
    shared = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor; files may hold either name
    for one, other in (shared, shared[::-1]):
        if one in stored:
            stored[other] = stored[one]
            break
    expected = model.state_dict()
    if absent := [name for name in expected if name not in stored]:
        more = (
            f"{absent[0]} and {len(absent) - 1} more"
            if len(absent) > 1
            else f"1 tensors, such as {absent[0]}"
        )
        raise CheckpointError(
            f"The text encoder in {folder} lacks {more}.",
            "It is damaged, or not a T5 encoder.",
        )
    for name, tensor in expected.items():
        weight = stored[name]
        if weight.shape != tensor.shape or weight.dtype not in NUMBERS:
            raise CheckpointError(
                f"The text encoder in {folder} has {tuple(weight.shape)} {str(weight.dtype)[6:]} instead of "
                f"{tuple(tensor.shape)} numbers as {name}.",
                "It is damaged, or not a T5 encoder in the usual number formats.",
            )
    return model, {name: stored[name] for name in expected}


def _weights(folder: Path) -> list[Path]:
    """Weights files of the folder, safetensors before pickles; an index in the folder is not followed."""
    names = sorted(path.name for path in folder.iterdir())
    for stem, ending in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if stem + ending in names:
            return [folder / (stem + ending)]
        if parts := [name for name in names if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}{ending}", name)]:
            count = int(parts[0].removesuffix(ending)[-5:])
            if len(parts) != count:
                raise CheckpointError(
                    f"The text encoder in {folder} cannot be loaded: it has {len(parts)} of {count} parts.",
                    "Get the folder again, whole, as transformers saved it.",
                )
            return [folder / name for name in parts]
    raise CheckpointError(
        f"The text encoder in {folder} cannot be loaded: it has no model.safetensors or pytorch_model.bin.",
        "Get the folder again, whole, as transformers saved it.",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Context without messages and progress bars of ``transformers``."""
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


def tokenize(model: Any, tokenizer: Any, text: str, tokens: int) -> tuple[list[int], str]:
    """Tokenize a prompt, cut to ``tokens`` tokens: its ids with the end token, and the end that does not fit.

    Raises:
        CheckpointError: the tokenizer cannot read it, or is not that of the network.
    """
    try:
        ids = tokenizer(text, verbose=False).input_ids
        rest = ids[tokens - 1 : -1] if len(ids) > tokens else []
        dropped = tokenizer.decode(rest, skip_special_tokens=True) if rest else ""
    except BaseException as error:
        if is_shortage(error) or not is_fault(error):
            raise
        raise CheckpointError(  # transformers does not check the files
            f"The text encoder's tokenizer cannot read a prompt ({first_line(error)}).",
            "Get its folder again, whole, as transformers saved it.",
        ) from error
    if not 0 <= min(ids, default=-1) <= max(ids, default=-1) < model.config.vocab_size:
        raise CheckpointError(
            f"The text encoder has {model.config.vocab_size} token embeddings, fewer than "
            "its tokenizer uses.",
            "Its files do not belong together.",
        )
    return [*ids[: tokens - 1], ids[-1]] if rest else ids, dropped.strip()
