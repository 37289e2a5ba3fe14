"""Turn the npm packages of Fluent emoji into prepared arrays for training (docs/notes/training.md).

    npm pack @lobehub/fluent-emoji-3d @lobehub/fluent-emoji-anim-1 ... -4     # in SOURCE, then unpack
    python scripts/prepare_emoji.py SOURCE DATA

Writes folders of ``images.npy`` (uint8, N x 128 x 128 x 3, on white) with an ``items.tsv`` that
names the code points and frame of each:

- ``DATA/pictures``: every static picture, and 16 frames spread over each animation without skin tone;
- ``DATA/heldout``: one frame of each of these animations, half way between two of the 16;
- ``DATA/emoji``: the classes of ``narcli/classes/emoji.tsv`` with ``labels.npy``, three pictures each: the
  static one, and two frames spread over the animation or, where there is none, two copies of it, shifted
  and scaled a little.

And of clips, N x 16 x 64 x 64 x 3, each the 16 frames of an animation, which are a loop:

- ``DATA/clips``: every animation without skin tone, for the tokenizer;
- ``DATA/emoji-video``: the classes of ``narcli/classes/emoji-video.tsv`` with ``labels.npy``, one clip each;
- ``DATA/clips-heldout``: of each of these classes the 16 frames half way between.
"""

from __future__ import annotations

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 128
FRAMES = 16  # of an animation, for the tokenizer
VARIANTS = 3  # pictures a class, for the transformer
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def on_white(picture: Image.Image) -> Image.Image:
    """Any picture -> RGB on white, SIZE x SIZE."""
    picture = picture.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def frames(path: Path, positions: list[int]) -> list[np.ndarray]:
    with Image.open(path) as picture:
        found = []
        for position in positions:
            picture.seek(position)
            found.append(np.asarray(on_white(picture)))
        return found


def animation(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The FRAMES spread frames of an animation and the one held out; none for a static file."""
    with Image.open(path) as picture:
        count = getattr(picture, "n_frames", 1)
    if count < 2 * FRAMES:
        return [], None
    spread = [i * count // FRAMES for i in range(FRAMES)]
    # Which gap the held-out frame comes from varies from emoji to emoji.
    gap = sum(path.stem.encode()) % FRAMES
    heldout = (2 * gap + 1) * count // (2 * FRAMES)
    wanted = sorted({*spread, heldout})
    found = dict(zip(wanted, frames(path, wanted), strict=True))
    return [found[i] for i in spread], found[heldout]


def still(path: Path) -> np.ndarray:
    return frames(path, [0])[0]


def write(folder: Path, images: list[np.ndarray], items: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", np.stack(images))
    (folder / "items.tsv").write_text("".join(f"{stem}\t{frame}\n" for stem, frame in items))
    print(f"{folder}: {len(images)} items")


def pictures(source: Path, data: Path) -> None:
    images, items, held, held_items = [], [], [], []
    statics = sorted(source.glob("lobehub-fluent-emoji-3d-*/package/assets/*.webp"))
    moving = sorted(source.glob("lobehub-fluent-emoji-anim-*/package/assets/*.webp"), key=lambda p: p.name)
    moving = [p for p in moving if not SKIN_TONES & set(p.stem.split("-"))]
    with ProcessPoolExecutor() as pool:
        for path, image in zip(statics, pool.map(still, statics, chunksize=32), strict=True):
            images.append(image)
            items.append((path.stem, "static"))
        for path, (spread, heldout) in zip(moving, pool.map(animation, moving, chunksize=4), strict=True):
            images += spread
            items += [(path.stem, str(i)) for i in range(len(spread))]
            if heldout is not None:
                held.append(heldout)
                held_items.append((path.stem, "heldout"))
    write(data / "pictures", images, items)
    write(data / "heldout", held, held_items)


def shifted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture scaled by 0.86 to 1 and moved within the room that this leaves, on white."""
    size = round(SIZE * rng.uniform(0.86, 1.0))
    small = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(small, tuple(int(v) for v in rng.integers(0, SIZE - size + 1, 2)))
    return np.asarray(canvas)


def classes(data: Path, table: Path) -> None:
    images = np.load(data / "pictures" / "images.npy", mmap_mode="r")
    places: dict[str, list[int]] = {}
    for index, line in enumerate((data / "pictures" / "items.tsv").read_text().splitlines()):
        places.setdefault(line.split("\t")[0], []).append(index)
    rng = np.random.default_rng(0)
    chosen, labels, items = [], [], []
    with table.open(encoding="utf-8") as file:
        for label, row in enumerate(csv.DictReader(file, delimiter="\t")):
            stem = row["code_points"]
            static, *moving = (images[i] for i in places[stem])
            if moving:  # the first frame is much like the static picture
                found = [static] + [moving[i * FRAMES // VARIANTS] for i in range(1, VARIANTS)]
            else:
                found = [static] + [shifted(static, rng) for _ in range(1, VARIANTS)]
            chosen += found
            labels += [label] * len(found)
            items += [(stem, str(i)) for i in range(len(found))]
    write(data / "emoji", chosen, items)
    np.save(data / "emoji" / "labels.npy", np.asarray(labels))


def clips(source: Path, data: Path, table: Path) -> None:
    images = np.load(data / "pictures" / "images.npy", mmap_mode="r")
    starts: dict[str, int] = {}  # of the 16 frames of each animation
    for index, line in enumerate((data / "pictures" / "items.tsv").read_text().splitlines()):
        stem, frame = line.split("\t")
        if frame == "0":
            starts[stem] = index
    found = {stem: images[start : start + FRAMES] for stem, start in starts.items()}
    with table.open(encoding="utf-8") as file:
        stems = [row["code_points"] for row in csv.DictReader(file, delimiter="\t")]
    for stem in stems:
        print(f"{stem}: mean absolute change from frame to frame {motion(found[stem]):.4f}")
    found = {stem: halved(frames) for stem, frames in found.items()}
    write(data / "clips", list(found.values()), [(stem, "clip") for stem in found])
    write(data / "emoji-video", [found[stem] for stem in stems], [(stem, "clip") for stem in stems])
    np.save(data / "emoji-video" / "labels.npy", np.arange(len(stems)))
    paths = [next(source.glob(f"lobehub-fluent-emoji-anim-*/package/assets/{stem}.webp")) for stem in stems]
    between = [halved(half_way(path)) for path in paths]
    write(data / "clips-heldout", between, [(stem, "heldout") for stem in stems])


def halved(clip: np.ndarray) -> np.ndarray:
    """Frames at half their size: the mean of each 2 x 2 pixels."""
    blocks = clip.reshape(len(clip), SIZE // 2, 2, SIZE // 2, 2, 3).astype(np.uint16)
    return ((blocks.sum((2, 4)) + 2) // 4).astype(np.uint8)


def motion(clip: np.ndarray) -> float:
    """Mean absolute change of a loop from frame to frame, as a share of the range."""
    return float(np.abs(np.roll(clip, -1, 0).astype(np.int16) - clip).mean() / 255)


def half_way(path: Path) -> np.ndarray:
    """The frames of an animation half way between the FRAMES spread over it."""
    with Image.open(path) as picture:
        count = picture.n_frames
    return np.stack(frames(path, [(2 * i + 1) * count // (2 * FRAMES) for i in range(FRAMES)]))


def main(source: Path, data: Path) -> None:
    if not (data / "heldout" / "images.npy").exists():
        pictures(source, data)
    tables = Path(__file__).parents[1] / "src" / "narcli" / "classes"
    classes(data, tables / "emoji.tsv")
    clips(source, data, tables / "emoji-video.tsv")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
