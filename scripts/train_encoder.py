"""Train the text encoder of `emoji-text` on the phrases of prepare_phrases.py (docs/notes/training.md).

    python scripts/train_encoder.py SOURCE DATA OUTPUT --steps 1500

Goes on where it stopped. Writes ``OUTPUT/encoder``, as ``transformers`` saves it, and
``OUTPUT/reader.safetensors``, what reads meanings and pictures from it. ``--prompts`` takes a table of
prompts and acceptable code points, of which one without skin tone stands for every tone; it tells for how
many the picture found first is acceptable.
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
from safetensors.torch import load_file, save_file

from narcli.allocator import keep_memory
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


@torch.inference_mode()
def judge(
    student: Student, encoder: T5Encoder, rows: list[dict[str, str]], prompts: Path
) -> dict[str, object]:
    """For how many prompts the first picture, or one of the first five, is acceptable."""
    keys = [row["key"] for row in rows]
    cases = [line.split("\t") for line in prompts.read_text("utf-8").splitlines() if line]
    ids = [torch.tensor(encoder.tokenizer(clean(prompt)).input_ids) for prompt, _ in cases]
    _, logits = student(ids)
    report: dict[str, object] = {}
    for name, scores in zip(("end", "words"), logits, strict=True):
        first, among, wrong = 0, 0, []
        for (prompt, points), row in zip(cases, scores, strict=True):
            good = {key_of(each) for each in points.split()}
            best = [keys[index] in good or untoned(keys[index]) in good for index in row.topk(5).indices]
            first, among = first + best[0], among + any(best)
            if not best[0]:
                wrong.append(f"{prompt} -> {rows[int(row.argmax())]['caption']}")
        report[name] = {"first": first / len(cases), "among five": among / len(cases), "wrong": wrong}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("source", "data", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
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
    encoder.save(given.output / "encoder")
    heads = {
        name: tensor.contiguous() for name, tensor in student.state_dict().items() if "encoder." not in name
    }
    save_file(heads, given.output / "reader.safetensors")
    report: dict[str, object] = {"pieces": len(kept), "phrases": len(phrases.texts)}
    if given.prompts:
        report["prompts"] = judge(student, encoder, rows, given.prompts)
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
