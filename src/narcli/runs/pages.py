"""Samples on a page: their words, pictures on the way, and tiles of codes, for ``viz.viewer``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from PIL import Image

from ..decoding import Decodes
from ..order import NAR
from ..records import Record
from ..results import Result, describe
from ..viz import viewer

About = Mapping[str, Any]
MAX_SAMPLES = 4  # of a run or a file on a page
MAX_TILES = 512  # codes shown as tiles, those of the largest shares
TILE = 16  # pixels of the largest tile


def shown(
    decoder: Decodes, results: Sequence[Result], *, partials: bool, told: bool = True
) -> list[viewer.Shown]:
    """Prepare samples for a page.

    Args:
        decoder: maker of their frames.
        results: samples with or without records.
        partials: decode pictures on the way, instead of uncovering the last one.
        told: show settings.
    """
    tiles = code_tiles(decoder, [result.record for result in results if result.record is not None])
    runs = []
    for index, result in enumerate(results):
        between: dict[int, Sequence[Image.Image]] = {}
        if partials:
            steps = viewer.partial_steps(decoder.order)
            parts = decoder.partials([result.tokens], steps)
            between = {step: clip for step, (clip,) in zip(steps, parts, strict=True)}
            between[steps[-1]] = result.frames
        record = result.record.arrays if result.record is not None else {}
        title, facts = _words(result.metadata) if told else (f"sample {index + 1}", {})
        runs.append(viewer.Shown(decoder.order, title, facts, result.frames, between, record, tiles))
    return runs


def _words(about: About) -> tuple[str, dict[str, str]]:
    """Return title and facts of a sample, from its metadata."""
    sampling = about["sampling"]
    facts = {
        "seed": about["seed"],
        "model": about["model"]["name"],
        "order": about.get("order", NAR),
        "temperature": f"{sampling['temperature']:g}",
        "guidance": f"{sampling['cfg_scale']:g}",
        "top-k": sampling["top_k"] or "all",
        "top-p": f"{sampling['top_p']:g}",
    }
    return describe(about).splitlines()[0], {name: str(value) for name, value in facts.items()}


@torch.inference_mode()
def code_tiles(decoder: Decodes, records: Sequence[Record]) -> viewer.Tiles | None:
    """Draw what codes look like: a block of equal cells each, many in a picture, cut out at its middle.

    Args:
        decoder: its tokenizer decodes the codes.
        records: their tokens and alternatives are drawn, at most ``MAX_TILES`` codes.

    Returns:
        The tiles; None without records, or of a tokenizer whose tokens have no place.
    """
    tokenizer, grid = decoder.tokenizer, decoder.grid
    if not records or tokenizer.config.holistic:
        return None
    weights: Counter[int] = Counter()
    for record in records:
        weights.update(record.tokens.tolist())
        for code, share in zip(
            record.codes.ravel().tolist(), record.probabilities.ravel().tolist(), strict=True
        ):
            weights[code] += share
    codes = sorted(code for code, _ in weights.most_common(MAX_TILES))
    slices, rows, columns = (1, *grid)[-3:]
    block = 2 if min(rows, columns) > 1 else 1
    down, across = rows // block, columns // block
    (width, height), tiles = decoder.size, []
    high, wide = height // rows, width // columns
    for start in range(0, len(codes), down * across):
        part = codes[start : start + down * across]
        filled = torch.tensor(part + part[-1:] * (down * across - len(part))).view(down, across)
        cells = filled.repeat_interleave(block, 0).repeat_interleave(block, 1)
        whole = cells[-1:].expand(rows, -1).clone()  # an odd row or column repeats the last block
        whole = torch.cat([whole, whole[:, -1:].expand(-1, columns - whole.shape[1])], 1)
        whole[: len(cells), : cells.shape[1]] = cells
        tokens = whole.flatten().repeat(slices)[None].to(decoder.device)
        (clip,) = decoder.decode_vectors(tokenizer.quantize(tokens))
        frame = clip[len(clip) // 2]
        for index in range(len(part)):
            left = (index % across * block + (block - 1) / 2) * wide
            upper = (index // across * block + (block - 1) / 2) * high
            tiles.append(frame.crop((round(left), round(upper), round(left) + wide, round(upper) + high)))
    side, in_row = min(TILE, wide), min(32, len(tiles))
    sheet = Image.new("RGB", (in_row * side, ceil(len(tiles) / in_row) * side))
    for index, tile in enumerate(tiles):
        small = tile.resize((side, side), Image.Resampling.LANCZOS) if tile.size != (side, side) else tile
        sheet.paste(small, (index % in_row * side, index // in_row * side))
    return viewer.Tiles(codes, sheet, in_row)
