"""Properties that the sizes of every tokenizer have, whatever its network. No torch."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol


class TokenizerConfig(Protocol):
    """Sizes of a tokenizer: a frozen dataclass.

    Args:
        holistic: no token belongs to a place, so that pictures cannot be uncovered cell by cell.
        laid_out: what the names of the parameters begin with that take memory of their own on a CPU. The
            others stay mapped from their file. "" is none.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    holistic: ClassVar[bool]
    laid_out: ClassVar[str]

    def __hash__(self) -> int:
        """Sizes are keys of caches."""

    @property
    def kind(self) -> str:
        """``image-tokenizer`` or ``video-tokenizer``."""

    @property
    def codebook_size(self) -> int:
        """Number of codes, the vocabulary of the transformer."""

    def clip_size(self, grid: tuple[int, ...]) -> tuple[int, int, int]:
        """(frames, height, width) of what is decoded from a grid; a picture has one frame.

        Raises:
            ValueError: a grid that the tokenizer has no pictures or clips of.
        """

    def decoding_bytes(self, grid: tuple[int, ...], itemsize: int) -> int:
        """Bytes held at once while one grid is decoded, in numbers of ``itemsize`` bytes."""
