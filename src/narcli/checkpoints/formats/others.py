"""Files of families that narcli names but does not read yet."""

from __future__ import annotations

from .format import Format

_NAR_HINT = "NAR's own weights have medusa_* (images) or output_R, output_D, output_B (videos) tensors."

RASTER_VIDEO = Format(
    "a raster-order video model (LARP's, or another that NAR is compared with)",
    {"tok_embeddings.weight", "abs_pe"}.issubset,
    hint=_NAR_HINT,
)
LLAMAGEN = Format(
    "a LlamaGen model (raster order; it has no medusa_* tensors)",
    {"tok_embeddings.weight"}.issubset,
    hint=_NAR_HINT,
)
T5 = Format(
    "a T5 text encoder",
    lambda names: "shared.weight" in names or "encoder.block.0.layer.0.SelfAttention.q.weight" in names,
)
