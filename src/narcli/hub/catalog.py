"""The models that narcli knows by name, one literal row each. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.formats import transformer
from ..checkpoints.formats.transformer import RELEASED_DEFAULTS
from ..checkpoints.formats.var import DEFAULTS as VAR
from ..order import SIDES

#: What a model can be the default for.
DEFAULT_KINDS = ("image", "text", "video")
#: Kinds of transformers; a model that goes on from frames has to be named.
MODEL_KINDS = (*DEFAULT_KINDS, "frames")
WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Model:
    """One model: where it is and what goes with it.

    Args:
        name: what people call it.
        kind: ``image`` (from classes), ``text`` (images from text), ``video`` (from classes), ``frames``
            (videos that go on from frames), ``image-tokenizer``, ``video-tokenizer`` or ``text-encoder``.
        repo: repository on the Hub; None for local and built-in ones.
        file: weights file in the repository; None is the only one there.
        size: bytes to fetch, about; None where not known.
        grid: of its tokens, where the file cannot tell.
        tokenizer: name of its tokenizer, or of the built-in model whose tokenizer it has; None when it is in
            the model's own folder, or not known.
        classes: name of its class table, or the names; None when not known.
        defaults: sampling settings.
        license: None is "see the model's page".
        note: what else to know.
        sizes: fields of the sizes of its network but the grid, as in a ``config.json``; of a text encoder
            those of its own ``config.json``. Empty where only the files tell.
        path: the local file or folder.
        text_encoder: name of its text encoder; None when it is in the model's own folder, or not known.
        origin: sentence on who chose it, where nobody named it for this run, or "".
    """

    name: str
    kind: str
    repo: str | None = None
    file: str | None = None
    size: int | None = None
    grid: tuple[int, ...] | None = None
    tokenizer: str | None = None
    classes: str | tuple[str, ...] | None = field(default=None, repr=False)
    defaults: Mapping[str, float] = field(default_factory=dict)
    license: str | None = None
    note: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: Path | None = None
    text_encoder: str | None = None
    origin: str = field(default="", compare=False)

    @property
    def page(self) -> str | None:
        """Address of its page on the Hub; None for local and built-in ones."""
        return f"https://huggingface.co/{self.repo}" if self.repo else None


IMAGE, TEXT, VIDEO = (RELEASED_DEFAULTS[kind] for kind in DEFAULT_KINDS)
#: What the released text models were trained with.
TEXT_ENCODER_OF_RELEASED = "flan-t5-xl"
#: Settings of PAR's and of LlamaGen's scripts where they are not NAR's.
PAR = transformer.PAR.defaults["image"]
RASTER_TEXT = {"cfg_scale": 7.5, "top_k": 1000}
_SIZES = {  # by the names of the papers: layers, attention heads, width, hidden size of the SwiGLU
    "B": (12, 12, 768, 2048), "L": (24, 16, 1024, 2816), "XL": (36, 20, 1280, 3584),
    "XXL": (48, 24, 1536, 4096), "3B": (24, 32, 3200, 8704),
}  # fmt: skip
_LLAMA = {
    name: {
        "layers": layers, "heads": heads, "dim": dim, "ffn_dim": ffn, "vocab_size": 16384,
        "num_classes": 1000,
    }
    for name, (layers, heads, dim, ffn) in _SIZES.items()
}  # fmt: skip
_LLAMA_TEXT = _LLAMA["XL"] | {
    "num_classes": 0, "condition": "text", "condition_tokens": 120, "caption_dim": 2048,
}  # fmt: skip

# fmt: off
_ROWS = (
    Model("emoji", "image", classes="emoji", license="MIT", note="built in", path=WEIGHTS / "emoji"),
    Model("emoji-text", "text", tokenizer="emoji", license="MIT AND Apache-2.0", note="built in",
          path=WEIGHTS / "emoji-text"),
    Model("emoji-video", "video", classes="emoji-video", license="MIT", note="built in",
          path=WEIGHTS / "emoji-video"),
    Model("nar-b-256", "image", "chenfeng1271/NAR-imagenet-256-B", "last_version.pt", 522_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="130 M parameters", sizes={
              "dim": 768, "layers": 12, "heads": 12, "ffn_dim": 2048, "vocab_size": 16384,
              "num_classes": 1000}),
    Model("nar-m-256", "image", "yefly/NAR-imagenet-256-M", None, 1_160_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="290 M parameters", sizes={
              "dim": 1024, "layers": 18, "heads": 16, "ffn_dim": 2816, "vocab_size": 16384,
              "num_classes": 1000}),
    Model("nar-l-256", "image", "chenfeng1271/NAR-imagenet-256-L", None, 1_490_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="372 M parameters", sizes={
              "dim": 1024, "layers": 24, "heads": 16, "ffn_dim": 2816, "vocab_size": 16384,
              "num_classes": 1000}),
    Model("nar-xl-256", "image", "yefly/NAR-imagenet-256-XL", None, 3_260_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="816 M parameters", sizes={
              "dim": 1280, "layers": 36, "heads": 20, "ffn_dim": 3584, "vocab_size": 16384,
              "num_classes": 1000}),
    Model("nar-xxl-256", "image", "chenfeng1271/NAR-imagenet-256-XXL", None, 5_840_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="1.46 B parameters", sizes={
              "dim": 1536, "layers": 48, "heads": 24, "ffn_dim": 4096, "vocab_size": 16384,
              "num_classes": 1000}),
    Model("var-d16", "image", "FoundationVision/var", "var_d16.pth", 1_243_100_000,
          (16, 16), "var-vq16", "imagenet1k", VAR, "MIT", note="310 M parameters", sizes={
              "sides": SIDES[16], "dim": 1024, "layers": 16, "heads": 16, "vocab_size": 4096,
              "code_dim": 32, "num_classes": 1000}),
    Model("var-d20", "image", "FoundationVision/var", "var_d20.pth", 2_405_700_000,
          (16, 16), "var-vq16", "imagenet1k", VAR, "MIT", note="601 M parameters", sizes={
              "sides": SIDES[16], "dim": 1280, "layers": 20, "heads": 20, "vocab_size": 4096,
              "code_dim": 32, "num_classes": 1000}),
    Model("var-d24", "image", "FoundationVision/var", "var_d24.pth", 4_135_700_000,
          (16, 16), "var-vq16", "imagenet1k", VAR, "MIT", note="1.03 B parameters", sizes={
              "sides": SIDES[16], "dim": 1536, "layers": 24, "heads": 24, "vocab_size": 4096,
              "code_dim": 32, "num_classes": 1000}),
    Model("var-d30", "image", "FoundationVision/var", "var_d30.pth", 8_042_300_000,
          (16, 16), "var-vq16", "imagenet1k", VAR, "MIT", note="2.01 B parameters", sizes={
              "sides": SIDES[16], "dim": 1920, "layers": 30, "heads": 30, "vocab_size": 4096,
              "code_dim": 32, "num_classes": 1000}),
    Model("var-d36-512", "image", "FoundationVision/var", "var_d36.pth", 9_436_100_000,
          (32, 32), "var-vq16", "imagenet1k", VAR, "MIT", note="512 px, 2.35 B parameters", sizes={
              "sides": SIDES[32], "dim": 2304, "layers": 36, "heads": 36, "vocab_size": 4096,
              "code_dim": 32, "num_classes": 1000, "shared_modulation": True}),
    Model("nar-xl-t2i-256", "text", "yefly/NAR-XL-t2i-stage1", None, None,
          (16, 16), "vq16-t2i", None, TEXT, note="256 px, 0.8 B parameters",
          text_encoder=TEXT_ENCODER_OF_RELEASED, sizes={
              "dim": 1280, "layers": 36, "heads": 20, "ffn_dim": 3584, "vocab_size": 16384,
              "condition": "text", "condition_tokens": 120, "caption_dim": 2048}),
    Model("nar-xl-t2i-512", "text", "yefly/NAR-XL-t2i-stage2", None, None,
          (32, 32), "vq16-t2i", None, TEXT, note="512 px, 0.8 B parameters",
          text_encoder=TEXT_ENCODER_OF_RELEASED, sizes={
              "dim": 1280, "layers": 36, "heads": 20, "ffn_dim": 3584, "vocab_size": 16384,
              "condition": "text", "condition_tokens": 120, "caption_dim": 2048}),
    Model("nar-l-ucf101", "video", "chenfeng1271/NAR-ucf101-256-L", None, 1_480_000_000,
          (4, 16, 16), "larp-long", "ucf101", VIDEO, note="16 frames of 128 px, 369 M parameters", sizes={
              "dim": 1024, "layers": 24, "heads": 16, "ffn_dim": 2816, "vocab_size": 8192,
              "num_classes": 101, "position": "absolute"}),
    Model("nar-lp-ucf101", "video", "chenfeng1271/NAR-ucf101-256-LP", None, 2_780_000_000,
          (4, 16, 16), "larp-long", "ucf101", VIDEO, note="16 frames of 128 px, 694 M parameters", sizes={
              "dim": 1280, "layers": 30, "heads": 20, "ffn_dim": 3584, "vocab_size": 8192,
              "num_classes": 101, "position": "absolute"}),
    Model("llamagen-b-256", "image", "FoundationVision/LlamaGen", "c2i_B_256.pt", 443_600_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 111 M parameters", sizes={
              **_LLAMA["B"], "order": "raster"}),
    Model("llamagen-l-256", "image", "FoundationVision/LlamaGen", "c2i_L_256.pt", 1_371_700_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 343 M parameters", sizes={
              **_LLAMA["L"], "order": "raster"}),
    Model("llamagen-b-384", "image", "FoundationVision/LlamaGen", "c2i_B_384.pt", 443_600_000,
          (24, 24), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 384 px", sizes={
              **_LLAMA["B"], "order": "raster"}),
    Model("llamagen-l-384", "image", "FoundationVision/LlamaGen", "c2i_L_384.pt", 1_371_700_000,
          (24, 24), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 384 px", sizes={
              **_LLAMA["L"], "order": "raster"}),
    Model("llamagen-xl-384", "image", "FoundationVision/LlamaGen", "c2i_XL_384.pt", 3_098_800_000,
          (24, 24), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 775 M parameters", sizes={
              **_LLAMA["XL"], "order": "raster"}),
    Model("llamagen-xxl-384", "image", "FoundationVision/LlamaGen", "c2i_XXL_384.pt", 5_643_900_000,
          (24, 24), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 1.4 B parameters", sizes={
              **_LLAMA["XXL"], "order": "raster"}),
    Model("llamagen-3b-384", "image", "FoundationVision/LlamaGen", "c2i_3B_384.pt", 12_386_700_000,
          (24, 24), "vq16-c2i", "imagenet1k", IMAGE, "MIT", "raster order, 3.1 B parameters", sizes={
              **_LLAMA["3B"], "order": "raster"}),
    Model("llamagen-xl-t2i-256", "text", "peizesun/llamagen_t2i", "t2i_XL_stage1_256.pt", 3_111_700_000,
          (16, 16), "vq16-t2i", None, RASTER_TEXT, note="raster order, 256 px",
          text_encoder=TEXT_ENCODER_OF_RELEASED, sizes={**_LLAMA_TEXT, "order": "raster"}),
    Model("llamagen-xl-t2i-512", "text", "peizesun/llamagen_t2i", "t2i_XL_stage2_512.pt", 3_111_700_000,
          (32, 32), "vq16-t2i", None, RASTER_TEXT, note="raster order, 512 px",
          text_encoder=TEXT_ENCODER_OF_RELEASED, sizes={**_LLAMA_TEXT, "order": "raster"}),
    Model("par-xl-4x-384", "image", "Epiphqny/PAR", "PAR-XL-4x.pt", 3_098_800_000,
          (24, 24), "vq16-c2i", "imagenet1k", PAR, note="order par:4, 775 M parameters", sizes={
              **_LLAMA["XL"], "order": "par:4"}),
    Model("par-xxl-4x-384", "image", "Epiphqny/PAR", "PAR-XXL-4x.pt", 5_643_900_000,
          (24, 24), "vq16-c2i", "imagenet1k", PAR, note="order par:4, 1.4 B parameters", sizes={
              **_LLAMA["XXL"], "order": "par:4"}),
    Model("par-3b-4x-384", "image", "Epiphqny/PAR", "PAR-3B-4x.pt", 12_386_700_000,
          (24, 24), "vq16-c2i", "imagenet1k", PAR, note="order par:4, 3.1 B parameters", sizes={
              **_LLAMA["3B"], "order": "par:4"}),
    Model("par-3b-16x-384", "image", "Epiphqny/PAR", "PAR-3B-16x.pt", 12_386_800_000,
          (24, 24), "vq16-c2i", "imagenet1k", PAR, note="order par:16, 3.1 B parameters", sizes={
              **_LLAMA["3B"], "order": "par:16"}),
    Model("larp-ar-ucf101", "video", "hywang66/LARP-L-long-AR", "model.safetensors", 2_530_000_000,
          (4, 16, 16), "larp-long", "ucf101", VIDEO, note="raster order, 16 frames of 128 px", sizes={
              "dim": 1280, "layers": 30, "heads": 20, "ffn_dim": 3584, "vocab_size": 8192,
              "num_classes": 101, "position": "absolute", "order": "raster"}),
    Model("larp-ar-k600", "frames", "hywang66/LARP-L-long-AR-FP", "model.safetensors", 2_530_000_000,
          (4, 16, 16), "larp-long", note="16 frames of 128 px, 5 of them given, 633 M parameters", sizes={
              "dim": 1280, "layers": 30, "heads": 20, "ffn_dim": 3584, "vocab_size": 8192,
              "condition": "frames", "condition_tokens": 1025, "position": "absolute", "extra_tokens": 1,
              "order": "raster"}),
    Model("vq16-c2i", "image-tokenizer", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", 288_000_000,
          note="of the class models", sizes={
              "ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 256,
              "codebook_size": 16384, "codebook_dim": 8}),
    Model("vq16-t2i", "image-tokenizer", "peizesun/llamagen_t2i", "vq_ds16_t2i.pt", 287_920_306,
          note="of the text models", sizes={
              "ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 256,
              "codebook_size": 16384, "codebook_dim": 8}),
    Model("var-vq16", "image-tokenizer", "FoundationVision/var", "vae_ch160v4096z32.pth", 436_000_000,
          license="MIT", note="of VAR's models", sizes={
              "ch": 160, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 32,
              "codebook_size": 4096, "phis": 4}),
    Model("larp-long", "video-tokenizer", "hywang66/LARP-L-long-tokenizer", "model.safetensors",
          note="of the video models", sizes={
              "bottleneck_token_num": 1024, "codebook_size": 8192, "bottleneck_dim": 16, "input_size": 128,
              "frame_num": 16, "patch_size": 8, "temporal_patch_size": 4, "decoder_patch_size": 8,
              "decoder_temporal_patch_size": 4, "encoder_hidden_size": 768, "encoder_depth": 12,
              "encoder_num_heads": 12, "decoder_hidden_size": 768, "decoder_depth": 12,
              "decoder_num_heads": 12}),
    Model(TEXT_ENCODER_OF_RELEASED, "text-encoder", "google/flan-t5-xl", None, 11_400_000_000,
          license="Apache-2.0", note="of the text models", sizes={
              "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "num_layers": 24,
              "vocab_size": 32128, "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu"}),
)
# fmt: on
MODELS: Mapping[str, Model] = {row.name: row for row in _ROWS}

_KINDS = {
    "image": ("a model of images from classes", "Use `narcli image --class`."),
    "text": ("a model of images from text", "Use `narcli image --prompt`."),
    "video": ("a model of videos of classes", "Use `narcli video --class`."),
    "frames": ("a model of videos that go on from frames", "Use `narcli video --frames-from`."),
    "image-tokenizer": ("an image tokenizer", "Give it as `tokenizer`."),
    "video-tokenizer": ("a video tokenizer", "Give it as `tokenizer`."),
    "text-encoder": ("a text encoder", "Give it as `text_encoder`."),
}
_REPOSITORY = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<file>\w[\w./ +-]*))?", re.ASCII)
_TOKENIZERS = {
    "image": "vq16-c2i for those of ImageNet, var-vq16 for VAR's",
    "text": "vq16-t2i for those of images from text",
    "video": "larp-long for those of UCF-101",
    "frames": "larp-long for larp-ar-k600",
}


def tokenizer_kind(kind: str) -> str:
    """Kind of the tokenizer of a model of a kind."""
    return "video-tokenizer" if kind in ("video", "frames") else "image-tokenizer"


def smaller_models(model: Model, fits: Callable[[Model], bool]) -> list[str]:
    """Names of models of its kind and family that fit, the largest first, then built-in ones; not itself."""

    def alike(row: Model) -> bool:
        family = row.path is not None or row.name.split("-")[0] == model.name.split("-")[0]
        return row.kind == model.kind and family and row.name != model.name

    rows = [row for row in MODELS.values() if alike(row) and fits(row)]
    return [row.name for row in sorted(rows, key=lambda row: (row.path is None, row.size or 0), reverse=True)]
