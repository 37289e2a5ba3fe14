"""Families of released files: how to recognise them, and what is left out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: What the names of the tensors begin with that are left out on purpose, by family, and why.
DROPPED = {
    "vq": {"quantize.codebook_used": "a training-time record of which codes were used"},
    "larp": {"prior_model.": "a training-time network whose loss shapes the codes"},
}


def identify(names: Mapping[str, object] | Sequence[str]) -> str:
    """What the names of its tensors say a file is.

    Returns:
        ``image`` (class or text), ``video``, ``narcli`` (a transformer of ours), ``vq``, ``larp``, or what
        else it seems to be, in words.
    """
    has = set(names).__contains__
    if has("token_embedding.weight") and has("heads.right.output.weight"):
        return "narcli"
    if has("tok_embeddings.weight"):
        if has("medusa_output.weight") or has("medusa_norm.weight"):
            return "image"
        if has("output_R.weight") or has("output_D.weight"):
            return "video"
        if has("abs_pe"):
            return "a raster-order video model (LARP's, or another that NAR is compared with)"
        return "a LlamaGen model (raster order; it has no medusa_* tensors)"
    if has("quantize.embedding.weight"):
        return "vq"
    if has("bottleneck.out_linear.weight"):
        return "larp"
    if has("shared.weight") or has("encoder.block.0.layer.0.SelfAttention.q.weight"):
        return "a T5 text encoder"
    some = ", ".join(sorted(names)[:3])
    return f"a model of another family (its tensors begin with {some})" if some else "empty"


_IN_WORDS = {
    "image": "a NAR image model",
    "video": "a NAR video model",
    "narcli": "a NAR model",
    "vq": "an image tokenizer",
    "larp": "a video tokenizer (LARP)",
}
