"""Faces that transformers of all families have: of their sizes, and of the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..order import Order
from .plan import Cache, Plan


class Weights(NamedTuple):
    """Numbers of weights by use, for the least time of a pass.

    Args:
        layers: layers of the network.
        dim: its width.
        layer: weights of a layer that each place passes.
        head: weights that each decoded cell passes.
        once: weights that each row passes once, before the first pass.
    """

    layers: int
    dim: int
    layer: int
    head: int
    once: int = 0


class NetworkConfig(Protocol):
    """Sizes of a transformer: a frozen dataclass.

    Args:
        unguided: value of ``cfg_scale`` that means no guidance. A pass has the scale
            ``1 + (cfg_scale - unguided) * share``.
        fixed: settings that the family does not have, with the value that they must keep.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    unguided: ClassVar[float]
    fixed: ClassVar[Mapping[str, float]]

    def __hash__(self) -> int:
        """Sizes are keys of caches."""

    @property
    def kind(self) -> Any:
        """Kind of a model of these sizes: ``image``, ``text``, ``video`` or ``frames``."""

    @property
    def grid(self) -> tuple[int, ...]:
        """(H, W) of an image's tokens or (T, H, W) of a video's."""

    @property
    def vocab_size(self) -> int:
        """Codebook size V."""

    @property
    def num_classes(self) -> int:
        """Classes without the unconditional one; 0 for text."""

    @property
    def condition(self) -> Any:
        """Condition that the network takes: ``class``, ``text`` or ``frames``."""

    @property
    def condition_tokens(self) -> int:
        """Condition tokens C in front of the visual ones."""

    @property
    def caption_dim(self) -> int:
        """Width of the text features; 0 for classes."""

    @property
    def order(self) -> str:
        """Name of the order that the network decodes in."""

    @property
    def weights(self) -> Weights:
        """Weights by use."""

    @property
    def decoding_order(self) -> Order:
        """Order that the network was trained in."""

    def decoded_in(self, order: str | None) -> NetworkConfig:
        """Return the sizes with another order, which the network can run as it is; None keeps its own.

        Raises:
            UsageError: the network cannot, or the grid does not have the order.
        """

    @property
    def slots(self) -> int:
        """Places whose keys and values are kept, those of the condition included."""

    def cache_shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Return the shape of the keys and values of ``length`` places."""

    @property
    def activations(self) -> int:
        """Numbers that a row of the largest pass holds at once, in float32, the logits not counted."""


class Condition(Protocol):
    """Class ids or features to condition tokens."""

    def __call__(self, condition: Tensor) -> Tensor:
        """Embed B conditions: (B, C, D)."""

    def unconditional(self, condition: Tensor) -> Tensor:
        """Unconditional counterpart, for guidance: (B, C, D)."""


class State(Protocol):
    """State of a batch between passes."""

    cache: Cache


class Network(nn.Module):
    """Transformer that ``sampling.generate`` runs, pass by pass of an order.

    Args:
        config: its sizes.
        condition: embeds class ids or features.
    """

    config: NetworkConfig
    condition: Condition

    @property
    def weight_dtype(self) -> torch.dtype:
        """Number format of its weights."""
        return next(self.parameters()).dtype

    @abstractmethod
    def plan(self, order: Order | None = None, padded: bool = False) -> Plan:
        """Return the tensors of an order, made once.

        Args:
            order: None is the order that the network was trained in.
            padded: for passes after a condition with padding.
        """

    @abstractmethod
    def start(
        self,
        condition: Tensor,
        samples: int,
        padding: Tensor | None = None,
        order: Order | None = None,
    ) -> State:
        """Read the condition, (rows, C, D), of B samples."""

    @abstractmethod
    def feed(self, state: Any, index: int, tokens: Tensor) -> None:
        """Feed the places of pass ``index`` to the network, given tokens (B, N) in generation order."""

    @abstractmethod
    def predict(self, state: Any, index: int, scale: float | Tensor = 1.0) -> Tensor:
        """Compute the logits of the cells of pass ``index``: float32 (B, m, V).

        Args:
            state: of the batch.
            index: of the pass.
            scale: guidance scale, which takes 2 B rows. A number is used when above 1, a tensor without axes
                always: reading it would wait for the device.
        """

    def predict_heads(self, state: Any, index: int, scale: float = 1.0) -> Tensor:
        """Compute the logits of each axis head alone for the cells of pass ``index``: (B, m, heads, V).

        Raises:
            NotImplementedError: the family has a single head.
        """
        raise NotImplementedError

    def mix(self, state: Any, index: int, mixture: Tensor) -> Tensor:
        """Go on from mixtures of codes instead of the tokens of pass ``index``.

        Args:
            state: of the batch.
            index: of the pass.
            mixture: (B, m, V) shares of the codes of each cell.

        Returns:
            (B, N, C) vectors for ``Tokenizer.decode_vectors``, of all passes so far.

        Raises:
            NotImplementedError: the family reads tokens only.
        """
        raise NotImplementedError
