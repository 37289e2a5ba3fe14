"""Turn the static Fluent emoji, skin tones included, into pictures with captions (docs/notes/training.md).

    npm pack @lobehub/fluent-emoji-3d emojibase-data emojilib        # in SOURCE, then unpack
    python scripts/prepare_emoji_text.py SOURCE DATA

Writes

- ``DATA/all``: every picture as ``images.npy`` (uint8, N x 128 x 128 x 3, on white), and ``items.tsv``: what
  each is of (key, subject, attributes), a caption, and for 150 of them that they are set aside;
- ``DATA/train``: those that are not, with ``captions.tsv`` (a line a picture, tabs between captions) and the
  subjects as ``labels.npy``.

A subject is what pictures that differ in gender, skin tone or colour have in common. Set aside are
combinations of a subject and attributes of which every part, and all parts but one, appear elsewhere.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, combinations, count
from pathlib import Path

import numpy as np
from prepare_emoji import still

from narcli.prompts import clean

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERS = {
    "man": "man",
    "woman": "woman",
    "person": "person",
    "men": "man",
    "women": "woman",
    "people": "person",
}
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "light blue",
    "blue",
    "purple",
    "brown",
    "black",
    "white",
    "grey",
    "pink",
)
#: How many are set aside of which kind.
SET_ASIDE = {"gender and tone": 111, "tone": 32, "colour": 7}
MOST_OF_A_SUBJECT = {"gender and tone": 3, "tone": 1, "colour": 2}
MAX_BYTES = 79  # of a caption


@dataclass
class Item:
    """A picture: what it is of, and what it is called."""

    stem: str
    key: str
    label: str
    subject: str
    gender: str = ""
    tones: tuple[str, ...] = ()
    colour: str = ""
    group: str = ""
    keywords: list[str] = field(default_factory=list)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Gender, tones and colour; those that it has."""
        return tuple(filter(None, (self.gender, *self.tones, self.colour)))

    @property
    def kind(self) -> str:
        """Of the combination."""
        if len(self.tones) == 2:
            return "two tones"
        if self.tones:
            return "gender and tone" if self.gender else "tone"
        return "colour" if self.colour else ""


def key_of(code_points: str) -> str:
    """Equal for code points that differ in leading zeros and variation selectors only."""
    points = [point.lstrip("0") for point in re.split("[-_]", code_points.lower())]
    return "-".join(point for point in points if point not in ("fe0f", "e007f"))


def read_items(source: Path) -> list[Item]:
    stems = sorted(path.stem for path in source.glob("lobehub-fluent-emoji-3d-*/package/assets/*.webp"))
    (base,) = source.glob("emojibase-data-*/package/en/data.json")
    (lib,) = source.glob("emojilib-*/package/dist/emoji-en-US.json")
    emojilib = {
        key_of("-".join(f"{ord(c):x}" for c in emoji)): words
        for emoji, words in json.loads(lib.read_text()).items()
    }
    known = {}
    for entry in json.loads(base.read_text()):
        words = [*entry.get("tags", []), *emojilib.get(key_of(entry["hexcode"]), [])[1:]]
        for variant in (entry, *entry.get("skins", [])):
            tones = variant.get("tone", ())
            tones = [tones] if isinstance(tones, int) else list(tones)
            if (
                "tone" in variant
                and isinstance(variant["tone"], int)
                and variant["hexcode"].count("1F3F") == 2
            ):
                tones *= 2
            known[key_of(variant["hexcode"])] = (entry["label"], entry.get("group"), words, tones)
    items = []
    for stem in stems:
        found = known.get(key_of(stem))
        if found is None:
            raise SystemExit(f"There is no name for {stem}.")
        label, group, words, tones = found
        items.append(
            Item(
                stem,
                key_of(stem),
                label,
                label,
                tones=tuple(TONES[t - 1] for t in tones),
                group=str(group),
                keywords=words,
            )
        )
    split_attributes(items)
    return items


def split_attributes(items: list[Item]) -> None:
    """Take gender and colour out of the subjects where other pictures differ in them only."""
    rests: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        if match := re.fullmatch(rf"({'|'.join(COLOURS)}) (.+)", item.label):
            rests[match[2]].add(match[1])
    people = {item.label for item in items if item.group == "1"}
    for item in items:
        colour = re.fullmatch(rf"({'|'.join(COLOURS)}) (.+)", item.label)
        gender = re.fullmatch(r"(man|woman|person|men|women|people)(?: (?!and )(.+)|(: .+))?", item.label)
        if colour and len(rests[colour[2]]) > 2:
            item.colour, item.subject = colour[1], colour[2]
        elif gender and item.group == "1":
            item.gender = GENDERS[gender[1]]
            item.subject = gender[2] or f"person{gender[3] or ''}"
            # "astronaut" is the third of "man astronaut" and "woman astronaut".
        elif {f"man {item.label}", f"woman {item.label}"} <= people:
            item.gender = "person"


# --- captions ------------------------------------------------------------------------------------

ADJECTIVES = {"man": "male", "woman": "female"}


def captions(item: Item, unique: dict[str, set[str]]) -> list[str]:
    """Ways to say what a picture shows, the plainest first, which training takes half of the time."""
    name = plain_name(item)
    bases = [name, f"{article(name)} {name}", f"picture of {article(name)} {name}"]
    if item.gender == "person" and not name.startswith(("person", "people")):
        # Only what the name leaves out tells this picture from those of a man and a woman.
        bases = [f"person {name}", f"a person {name}", *bases, f"{name}, person"]
    if (
        item.gender in ADJECTIVES
        and not item.label.startswith(item.gender + ":")
        and item.subject != "person"
    ):
        bases += [f"{ADJECTIVES[item.gender]} {item.subject}", f"{item.subject}, {item.gender}"]
    if item.colour:
        bases += [
            f"{item.subject}, {item.colour}",
            f"{article(item.subject)} {item.subject} in {item.colour}",
            f"{item.subject} {item.colour}",
        ]
    if item.label.startswith("flag: "):
        place = item.label.removeprefix("flag: ")
        bases = [
            f"flag of {place}",
            f"{place} flag",
            f"the flag of {place}",
            f"flag: {place}",
            f"picture of the flag of {place}",
        ]
    if item.label.startswith("keycap: "):
        key = item.label.removeprefix("keycap: ")
        key = {"*": "asterisk", "#": "number sign"}.get(key, key)
        bases = [f"keycap {key}", f"key {key}", f"a keycap with {key}", f"picture of keycap {key}"]
    if not item.tones:
        words = [word.replace("_", " ") for word in item.keywords]
        own = [word for word in dict.fromkeys(words) if unique.get(word) == {item.key} and len(word) > 2]
        some = [
            word for word in dict.fromkeys(words) if word not in own and word not in name and word.isalpha()
        ]
        found = [
            *bases,
            name,
            *(f"{article(word)} {word}" for word in own[:2]),
            *own[:3],
            *(f"{name}, {word}" for word in some[:2]),
        ]
        found.append(f"emoji of {article(name)} {name}")
    else:
        tone = item.tones[0] if len(set(item.tones)) == 1 else ""
        found = []
        for base in bases:
            if tone:
                found += [f"{base}, {tone} skin tone", f"{base} with {tone} skin"]
            else:
                found += [
                    f"{base}, {item.tones[0]} and {item.tones[1]} skin tone",
                    f"{base} with {item.tones[0]} and {item.tones[1]} skin",
                ]
        if tone:
            found += [
                f"{tone} skin tone {name}",
                f"{tone} skin tone, {name}",
                f"{tone}-skinned {name}",
                f"a {tone}-skinned {name}",
            ]
        else:
            found += [f"{item.tones[0]} and {item.tones[1]} skin tone, {name}"]
    # Keywords such as ":'(" and "png" are cleaned away.
    fitting = [
        text
        for text in dict.fromkeys(found)
        if len(text.encode()) <= MAX_BYTES and any(map(str.isalnum, clean(text)))
    ]
    return fitting or [name[:MAX_BYTES]]


def plain_name(item: Item) -> str:
    """``person: curly hair`` -> ``person with curly hair``; the gender first."""
    name, _, rest = item.label.partition(": ")
    if rest and item.group == "1":
        name += f" with {rest}" if "hair" in rest or "beard" in rest else f", {rest}"
    elif rest:
        name = item.label.replace(":", "")
    return name


def article(name: str) -> str:
    if re.match("(men|women|people|the|[0-9])\\b", name) or name.endswith("s"):
        return "the" if name.endswith("s") else "some"
    return "an" if name[0].lower() in "aeiou" else "a"


# --- what is set aside ---------------------------------------------------------------------------


def parts(item: Item) -> list[tuple[str, ...]]:
    """Each of subject and attributes, and all of them but one."""
    first, *others = item.tones or ("",)
    told = {"gender": item.gender, "tone": first, "other tone": "".join(others), "colour": item.colour}
    has = [f"subject {item.subject}", *(f"{what} {value}" for what, value in told.items() if value)]
    return list(dict.fromkeys([*((one,) for one in has), *combinations(has, len(has) - 1)]))


def set_aside(items: list[Item]) -> set[str]:
    """Keys of the combinations to hold out."""
    rng = random.Random(0)
    one = {item.key: item for item in items}  # a picture may be there under two names
    left = Counter(chain.from_iterable(parts(item) for item in one.values()))
    chosen: set[str] = set()
    for kind, number in SET_ASIDE.items():
        taken: Counter[str] = Counter()
        candidates = sorted(item.key for item in one.values() if item.kind == kind)
        rng.shuffle(candidates)
        for key in candidates:
            item = one[key]
            if sum(one[k].kind == kind for k in chosen) == number:
                break
            if taken[item.subject] == MOST_OF_A_SUBJECT[kind] or any(left[part] < 3 for part in parts(item)):
                continue
            chosen.add(key)
            taken[item.subject] += 1
            left.subtract(parts(item))
    return chosen


def labels_of(items: Sequence[Item]) -> np.ndarray:
    """A number for each subject; pictures that are alone of it, under one name or two, have their own."""
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        keys[item.subject].add(item.key)
    several = [subject for subject, found in keys.items() if len(found) > 1]
    number = {subject: index for index, subject in enumerate(several)}
    alone = count(len(several))
    return np.array([number[i.subject] if i.subject in number else next(alone) for i in items])


def main(source: Path, data: Path) -> None:
    items = read_items(source)
    held = set_aside(items)
    unique: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        for word in item.keywords if not item.tones else ():
            unique[word.replace("_", " ")].add(item.key)
        unique[item.label].update({item.key, ""})  # a name is not a keyword of another
    folder = data / "all"
    folder.mkdir(parents=True, exist_ok=True)
    (assets,) = source.glob("lobehub-fluent-emoji-3d-*/package/assets")
    if not (folder / "images.npy").exists():
        with ProcessPoolExecutor(1) as pool:
            found = pool.map(still, [assets / f"{item.stem}.webp" for item in items], chunksize=64)
            np.save(folder / "images.npy", np.stack(list(found)))
    images = np.load(folder / "images.npy", mmap_mode="r")
    lines = [captions(item, unique) for item in items]
    with (folder / "items.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("stem", "key", "subject", "attributes", "kind", "held_out", "caption"))
        for item, texts in zip(items, lines, strict=True):
            row = (item.stem, item.key, item.subject, "|".join(item.attributes), item.kind)
            writer.writerow((*row, int(item.key in held), texts[0]))
    kept = [index for index, item in enumerate(items) if item.key not in held]
    train = data / "train"
    train.mkdir(exist_ok=True)
    np.save(train / "images.npy", images[kept])
    (train / "captions.tsv").write_text("".join("\t".join(lines[i]) + "\n" for i in kept), encoding="utf-8")
    np.save(train / "labels.npy", labels_of([items[i] for i in kept]))
    subjects = {item.subject for item in items}
    print(f"{len(items)} pictures of {len(subjects)} subjects, {len(kept)} for training")
    print(f"{len(held)} combinations are set aside:", dict(Counter(i.kind for i in items if i.key in held)))
    print(
        f"{sum(map(len, lines))} captions, the longest of {max(len(t.encode()) for t in chain(*lines))} bytes"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
