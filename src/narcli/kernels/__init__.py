"""Faster versions of the networks in ``narcli.models``, with the same results up to rounding.

A prepared network has the interface of the plain one and takes over its weights, so memory hardly grows. The
plain one is unusable afterwards. A prepared network cannot be trained, saved, copied or moved to another
device.
"""

from __future__ import annotations

from math import prod
from typing import overload

import torch
from torch import Tensor

from ..models.blocks import TransformerConfig
from ..models.larp import LARPTokenizer
from ..models.multiscale import MultiscaleTokenizer
from ..models.network import Network, NetworkConfig
from ..models.tokenizer import Tokenizer
from ..models.transformer import NARTransformer
from ..models.var import VARTransformer
from ..models.vq import VQTokenizer
from ..sampling import draw_plain, kth_largest_plain, refuse_unless
from ..settings import SamplingSettings
from . import native, packed


@overload
def prepare(network: NARTransformer) -> NARTransformer: ...


@overload
def prepare(network: Network) -> Network: ...


def prepare(network: Network) -> Network:
    """Make the fastest form of a transformer for this machine; it may be ``network`` itself."""
    if isinstance(network, VARTransformer):
        packed.pack(network)
    if type(network) is not NARTransformer:
        return network
    weight = network.token_embedding.weight
    if native.can_fuse(network.config, weight.dtype, weight.device):
        return native.NativeTransformer(network)
    if weight.device.type == "cpu" and packed.can_pack(weight.dtype):
        return packed.PackedTransformer(network)
    return network


def prepare_tokenizer(tokenizer: Tokenizer) -> None:
    """Prepare a tokenizer for decoding, in place.

    A convolutional decoder is packed, on a CPU channels last. LARP computes all positions at once, for which
    plain layers are as fast as packed ones; only its attention is compiled, if possible.
    """
    if isinstance(tokenizer, VQTokenizer | MultiscaleTokenizer):
        packed.pack_decoder(tokenizer)
    elif isinstance(tokenizer, LARPTokenizer):
        native.compile_attention(tokenizer)


def cache_numbers(config: NetworkConfig, rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """Count the numbers of the keys and values that a prepared transformer of these sizes keeps."""
    if isinstance(config, TransformerConfig) and native.can_fuse(config, dtype, device):
        return prod(native.cache_shape(config, rows, config.slots))
    return prod(config.cache_shape(rows, config.slots))


def draw(logits: Tensor, uniform: Tensor, settings: SamplingSettings) -> Tensor:
    """Draw tokens as ``sampling.draw_plain``; compiled, unless the temperature is 0 or top-p needs a sort."""
    unsorted = settings.temperature > 0 and settings.top_p == 1
    if unsorted and logits.dtype == torch.float32 and native.can_run(logits.dtype, logits.device):
        tokens = native.draw(logits, uniform, settings.divisor, settings.top_k)
        refuse_unless(tokens >= 0)
        return tokens
    return draw_plain(logits, uniform, settings)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Find the k-th largest value of each row, float32 (R, V) -> (R, 1); compiled if possible."""
    if native.can_run(values.dtype, values.device):
        return native.kth_largest(values, k)
    return kth_largest_plain(values, k)
