"""Train what finds the name that a prompt means, on the phrases of prepare_phrases.py
(docs/notes/training.md).

    python scripts/train_encoder.py SOURCE DATA OUTPUT --steps 2000

Goes on where it stopped. Writes ``OUTPUT/names``, the folder that ``narcli.checkpoints.names`` reads.
``--prompts`` takes a table of prompts and acceptable code points, of which one without skin tone stands for
every tone; it tells for how many the name found is acceptable.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path

import torch
from prepare_emoji_text import key_of
from prepare_phrases import TEACHER
from safetensors.torch import load_file

from narcli.allocator import keep_memory
from narcli.checkpoints.names import Names
from narcli.checkpoints.text_encoder import T5Encoder
from narcli.prompts import clean
from narcli.training.loop import TrainSettings
from narcli.training.words import Phrases, Student, train_words, word_encoder, word_pieces


def parts_of(rows: list[dict[str, str]]) -> torch.Tensor:
    """Numbers of the parts of each picture, the subject first: (P, K) int64, -1 where it has fewer."""
    number: dict[str, int] = {}
    found = []
    for row in rows:
        names = [f"subject {row['subject']}", *filter(None, row["attributes"].split("|"))]
        for name in names:
            number.setdefault(name, len(number))
        found.append([number[name] for name in names])
    most = max(map(len, found))
    return torch.tensor([[*each, *[-1] * (most - len(each))] for each in found])


def untoned(key: str) -> str:
    return re.sub("-1f3f[b-f]", "", key)


def names_of(student: Student, encoder: T5Encoder, rows: list[dict[str, str]]) -> Names:
    """Names of all pictures, each once, with their vectors."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(clean(row["caption"]), index)
    vectors = student.pictures().detach()[list(first.values())]
    look = student.look
    return Names(
        encoder.model, encoder.tokenizer, look.weight.detach(), look.bias.detach(), vectors, tuple(first)
    )


def judge(names: Names, rows: list[dict[str, str]], prompts: Path) -> dict[str, object]:
    """For how many prompts the name is that of an acceptable picture, and which ones are not."""
    keys: dict[str, str] = {}
    for row in rows:
        keys.setdefault(clean(row["caption"]), row["key"])
    cases = [line.split("\t") for line in prompts.read_text("utf-8").splitlines() if line]
    wrong = []
    for prompt, points in cases:
        good, (name, _) = {key_of(each) for each in points.split()}, names.nearest(clean(prompt))
        if keys[name] not in good and untoned(keys[name]) not in good:
            wrong.append(f"{prompt} -> {name}")
    return {"acceptable": 1 - len(wrong) / len(cases), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("source", "data", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=50)
    given = parser.parse_args()
    keep_memory()
    with (given.data / "all" / "items.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    phrases = Phrases.load(given.data / "phrases")
    (teacher,) = given.source.glob(TEACHER)
    tokenizer, kept = word_pieces(phrases.texts, (teacher / "vocab.txt").read_text("utf-8").splitlines())
    table = load_file(teacher / "model.safetensors")["embeddings.word_embeddings.weight"][kept]
    torch.manual_seed(0)
    encoder = word_encoder(tokenizer, table, 256, 4)
    settings = TrainSettings(
        steps=given.steps, batch_size=192, learning_rate=1e-3, warmup=60, betas=(0.9, 0.98),
        weight_decay=0.01, ema=0.99, save_every=given.save_every, compile=False,
    )  # fmt: skip
    targets = torch.zeros(len(rows), dtype=torch.bool)
    targets[phrases.owners] = True
    student = train_words(encoder, phrases, parts_of(rows), targets, settings, given.output)
    encoder.model.eval()
    names = names_of(student, encoder, rows)
    names.save(given.output / "names", torch.bfloat16)
    report: dict[str, object] = {"pieces": len(kept), "phrases": len(phrases.texts)}
    if given.prompts:
        report["prompts"] = judge(Names.load(given.output / "names"), rows, given.prompts)
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
