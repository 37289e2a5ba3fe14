"""The training loop of tokenizers, transformers and encoders.

A step depends only on its number, the seed and the checkpoint. So a killed run resumes from its last
checkpoint with the same result.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints.config import LOG, STATE
from ..devices import choose_dtype
from ..errors import CheckpointError, NarError, UsageError, first_line
from ..media.atomic import clear_parts, explain, write_atomic
from ..media.textfiles import check_regular, read_text, split_lines
from .muon import Muon
from .stop import deferred, say

TOLD_EVERY = 30  # seconds between progress lines if stderr is no terminal
SLOW = 0.1  # factor of the learning rate for parts that need a lower one
CHANGEABLE = ("save_every", "compile", "bfloat16")  # settings that may change when a run resumes


def has_bfloat16() -> bool:
    """Tell whether the processor computes in bfloat16."""
    return choose_dtype("auto", torch.device("cpu")) == torch.bfloat16


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the optimisation.

    Args:
        steps: optimiser steps in all.
        batch_size: pictures a step.
        learning_rate: peak, reached after ``warmup`` steps; a cosine takes it to zero.
        warmup: steps of linear increase, at most a tenth of all.
        betas: of AdamW; 0.9 and 0.95 as in the paper.
        weight_decay: on tensors of two and more dimensions.
        muon: use Muon instead of AdamW for hidden matrices and convolutions, at the same rate (its steps are
            scaled to AdamW's size).
        ema: decay of the averaged weights, which are the result.
        clip: largest norm of the gradient.
        save_every: steps between checkpoints and sample sheets.
        seed: of weights, order of the data, dropout and noise.
        compile: use ``torch.compile``, which needs a C++ compiler.
        bfloat16: run matrix products and convolutions in bfloat16 (autocast). The default is true if the
            processor computes with it; elsewhere it is many times slower than float32.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    muon: bool = False
    ema: float = 0.998
    clip: float = 1.0
    save_every: int = 500
    seed: int = 0
    compile: bool = True
    bfloat16: bool = field(default_factory=has_bfloat16)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least 1.")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to zero."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / (self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def batch_indices(count: int, settings: TrainSettings, step: int) -> np.ndarray:
    """Choose the items of a step: every item once an epoch, shuffled in each."""
    positions = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
    indices = np.empty(len(positions), dtype=np.int64)
    for epoch in np.unique(positions // count):
        here = positions // count == epoch
        order = np.random.default_rng((settings.seed, int(epoch))).permutation(count)
        indices[here] = order[positions[here] % count]
    return indices


def train(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, Tensor | float]]],
    settings: TrainSettings,
    folder: Path,
    sample: Callable[[nn.Module, Path], None],
    after_step: Callable[[int], None] = lambda step: None,
    memory: Mapping[str, Tensor] | None = None,
    about: Mapping[str, object] | None = None,
    slow: str = "",
    quiet: bool = False,
    beside: nn.Module | None = None,
) -> nn.Module:
    """Optimise ``model`` and return it with its averaged weights.

    Args:
        model: network to train, in place.
        loss_of: step number -> the scalar loss and figures to show.
        settings: see TrainSettings.
        folder: folder of ``state.pt`` (to resume from), ``log.jsonl`` and the sample sheets.
        sample: called with the averaged model and a path for a sheet, at every checkpoint.
        after_step: called after each optimiser step, under ``no_grad``.
        memory: tensors that the callbacks keep between steps; saved, and restored in place.
        about: other values that the result depends on (sizes, data); they must be equal to resume.
        slow: prefix of parameters that learn by AdamW at ``SLOW`` times the rate; empty for none.
        quiet: no progress display.
        beside: network that is saved with the result, for an estimate of the disk space.

    Raises:
        CheckpointError: ``folder`` holds a run of another model, of other data or with other settings.
        NarError: the loss is not finite, or the disk is too small or full.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP; the last whole step's state is written first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(folder, error) from error
    optimizers = optimizers_of(model, settings, slow)
    shares = [[group.pop("share") for group in optimizer.param_groups] for optimizer in optimizers]
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    memory = memory or {}
    about = {**(about or {}), **asdict(settings), **({"slow": SLOW} if slow else {})}
    for name in CHANGEABLE:
        del about[name]
    step = resume(folder, model, optimizers, average, memory, about)
    check_room(folder, model, memory, beside, optimizers, step == settings.steps)

    def save() -> None:
        state = {
            "step": step,
            "about": about,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": average,
            "memory": dict(memory),
        }
        write_atomic(folder / STATE, lambda path: save_tensors(state, path), overwrite=True)

    parameters: list[Tensor] = list(model.parameters())
    started, since, saved = time.monotonic(), step, step
    told = started - TOLD_EVERY
    shown: dict[str, float] = {}
    shows = {"unit": "step", "disable": quiet or None, "dynamic_ncols": True}
    plain = not quiet and sys.stderr is not None and not sys.stderr.isatty()
    with tqdm(total=settings.steps, initial=step, **shows) as bar, deferred(quiet) as stop:
        while step < settings.steps and not stop:
            torch.manual_seed((settings.seed * 1_000_003 + step) % 2**63)
            for optimizer, of_rate in zip(optimizers, shares, strict=True):
                for group, share in zip(optimizer.param_groups, of_rate, strict=True):
                    group["lr"] = settings.rate(step) * share
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                loss, figures = loss_of(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                # A short average at first, so that it forgets the random weights.
                decay = min(settings.ema, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.values()), parameters, 1 - decay)
                after_step(step)
            step += 1
            figures = {"loss": loss.detach(), **figures}
            for name, figure in figures.items():
                value = float(figure)
                shown[name] = value if name not in shown else 0.95 * shown[name] + 0.05 * value
            if not math.isfinite(shown["loss"]):
                raise NarError(
                    f"The loss became {shown['loss']} at step {step}.",
                    "Use a lower learning rate; the last checkpoint is kept.",
                )
            now = time.monotonic()
            pace = (step - since) * settings.batch_size / (now - started)
            words = {k: f"{v:.3f}" for k, v in shown.items()} | {"images/s": f"{pace:.1f}"}
            bar.set_postfix(words)
            bar.update()
            due = step % settings.save_every == 0 or step == settings.steps
            if plain and (due or now - told >= TOLD_EVERY):
                told = now
                left = timedelta(seconds=round((settings.steps - step) * settings.batch_size / pace))
                figures_text = ", ".join(f"{name} {value}" for name, value in words.items())
                plain = say(f"step {step}/{settings.steps}: {figures_text}, {left} left")
            if step % 50 == 0 or step == settings.steps:
                record = {"step": step, "rate": settings.rate(step), "images_per_s": round(pace, 2)}
                record |= {k: round(v, 5) for k, v in shown.items()}
                append(folder / LOG, json.dumps(record) + "\n")
            if due:
                save()
                saved = step
                with swapped(model, average):
                    sample(model, folder / f"sample-{step:06d}.png")
        if stop and step > saved:
            save()
    if stop:
        if not quiet:
            say(f"Stopped after {step} of {settings.steps} steps; the same command goes on.")
        signal.raise_signal(stop[0])
    put(model, average)
    return model


def check_room(
    folder: Path,
    model: nn.Module,
    memory: Mapping[str, Tensor],
    beside: nn.Module | None,
    optimizers: Sequence[torch.optim.Optimizer],
    done: bool,
) -> None:
    """Check that the disk can hold a run: its state, twice during an update, and its result.

    If all steps are ``done``, only the result is still to be written.

    Raises:
        NarError: the disk has less room.
    """
    weights, others, kept = (
        size(tensors)
        for tensors in (
            model.parameters(),
            beside.parameters() if beside is not None else (),
            memory.values(),
        )
    )
    moments = sum(
        size(group["params"]) * (1 if isinstance(optimizer, torch.optim.Muon) else 2)
        for optimizer in optimizers
        for group in optimizer.param_groups
    )
    state = 2 * weights + moments + kept  # weights and their average
    there = (folder / STATE).stat().st_size if (folder / STATE).is_file() else 0
    result, free = weights + others, shutil.disk_usage(folder).free
    needed = result if done else state + max(state, result) - there
    if needed > free:
        raise NarError(
            f"A run in {folder} takes {needed / 1e6:,.0f} MB, and the disk has {free / 1e6:,.0f} MB free.",
            "Free some space or choose another disk.",
        )


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def save_tensors(state: Mapping[str, object], path: Path) -> None:
    """Save with ``torch.save`` through a Python file, whose errors name faults of the disk."""
    with path.open("wb") as file:
        torch.save(state, file)


def append(path: Path, line: str) -> None:
    """Add a line to a text file.

    Raises:
        NarError: the file cannot be written, for example on a full disk.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise explain(path, error) from error


def optimizers_of(model: nn.Module, settings: TrainSettings, slow: str = "") -> list[torch.optim.Optimizer]:
    """Make AdamW; with ``settings.muon`` also Muon for hidden matrices and convolutions.

    ``slow`` is that of ``train``. Hidden matrices are those of layers and of the projections of captions.
    AdamW let the projections grow until their outputs were 40 times as large as token embeddings, and nearly
    equal for all captions.
    """
    matrices: list[nn.Parameter] = []
    rest: dict[tuple[float, float], list[nn.Parameter]] = {}  # by share of the rate, and weight decay
    for name, parameter in model.named_parameters():
        share = SLOW if slow and name.startswith(slow) else 1.0
        hidden = parameter.ndim == 4 or (
            parameter.ndim == 2 and ("layers." in name or "condition.fc" in name)
        )
        if settings.muon and share == 1 and hidden:
            matrices.append(parameter)
        else:
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            rest.setdefault((share, decay), []).append(parameter)
    decay, rate = settings.weight_decay, settings.learning_rate
    groups = [{"params": each, "share": share, "weight_decay": d} for (share, d), each in rest.items()]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)
    if not settings.muon:
        return [adamw]
    return [adamw, Muon(matrices, rate, decay)]


def resume(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
    memory: Mapping[str, Tensor],
    about: Mapping[str, object],
) -> int:
    """Resume the run in ``folder``, if any; return the number of finished steps.

    Raises:
        CheckpointError: a run of another model, other data or other settings.
    """
    clear_parts(folder)
    path, log = folder / STATE, folder / LOG
    if not os.path.lexists(path):
        log.unlink(missing_ok=True)
        return 0
    check_regular(path)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        there = {name: value for name, value in state["about"].items() if name not in CHANGEABLE}
        differing = sorted(name for name in {*about, *there} if about.get(name) != there.get(name))
        if not differing:
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            for tensors, kept in ((average, state["average"]), (memory, state["memory"])):
                for name, tensor in tensors.items():
                    tensor.copy_(kept[name])
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be gone on with ({first_line(error)}).",
            "Train into another folder, or remove that file to start anew.",
        ) from error
    if differing:
        listed = [
            f"{name} ({there[name]} there, {about[name]} now)"
            if all(isinstance(values.get(name), int | float) for values in (there, about))
            else name
            for name in differing
        ]
        hint = "Give the same to go on, or another folder to start anew."
        if "steps" in differing:  # the rate of every step depends on their number
            hint = (
                "The learning rate falls over all steps: give the same number, or start from the result in "
                "another folder."
            )
        raise CheckpointError(f"{folder} holds a run that differs in: {', '.join(listed)}.", hint)
    step = int(state["step"])
    if log.exists():  # later lines are written again
        kept = [line for line in split_lines(read_text(log, "a log", 2**30)) if 0 < step_of(line) <= step]
        write_atomic(log, "".join(f"{line}\n" for line in kept).encode(), overwrite=True)
    return step


def step_of(line: str) -> int:
    """Step of a line of the log; 0 for an incomplete line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


@contextmanager
def swapped(model: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which the model has the averaged weights."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    put(model, average)
    try:
        yield
    finally:
        put(model, kept)


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy ``weights`` into the parameters of ``model``."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
