"""The training loop that tokenizer and transformer share.

A step depends on its number and the seed only, so a run that was killed goes on from its last
checkpoint exactly as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import CheckpointError, NarError, UsageError
from ..writers import write_atomic


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to optimise.

    Args:
        steps: optimiser steps in all.
        batch_size: pictures a step.
        learning_rate: peak, reached after ``warmup`` steps; a cosine takes it to zero.
        warmup: steps of linear increase.
        betas: of AdamW; 0.9 and 0.95 as in the paper.
        weight_decay: of AdamW, on tensors of two and more dimensions.
        ema: decay of the averaged weights, which are what is saved as the result.
        clip: largest norm of the gradient.
        save_every: steps between checkpoints and sample sheets.
        seed: of weights, order of the data, augmentation and dropout.
        compile: use ``torch.compile``.
        bfloat16: run matrix products and convolutions in bfloat16 (autocast).
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    ema: float = 0.998
    clip: float = 1.0
    save_every: int = 500
    seed: int = 0
    compile: bool = True
    bfloat16: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least 1.")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def batch_indices(count: int, settings: TrainSettings, step: int) -> np.ndarray:
    """Which items step ``step`` sees: every item once an epoch, shuffled anew in each."""
    positions = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
    indices = np.empty(len(positions), dtype=np.int64)
    for epoch in np.unique(positions // count):
        here = positions // count == epoch
        order = np.random.default_rng((settings.seed, int(epoch))).permutation(count)
        indices[here] = order[positions[here] % count]
    return indices


def train(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    settings: TrainSettings,
    folder: Path,
    sample: Callable[[nn.Module, Path], None],
    after_step: Callable[[int], None] = lambda step: None,
    memory: Mapping[str, Tensor] | None = None,
    quiet: bool = False,
) -> nn.Module:
    """Optimise ``model`` and return it with its averaged weights.

    Args:
        model: what is trained, in place.
        loss_of: step number -> the scalar loss and figures to show.
        settings: see TrainSettings.
        folder: keeps ``state.pt`` (to go on from), ``log.jsonl`` and the sample sheets.
        sample: called with the averaged model and a path for a sheet, at every checkpoint.
        after_step: called after each optimiser step, under ``no_grad``.
        memory: tensors that these callbacks keep from step to step; saved, and restored in place.
        quiet: no progress display.

    Raises:
        CheckpointError: ``folder`` holds a run of another model or with other settings.
        NarError: the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    memory = memory or {}
    step = resume(folder / "state.pt", model, optimizer, average, memory, settings)
    parameters: list[Tensor] = list(model.parameters())
    started, since = time.monotonic(), step
    shown: dict[str, float] = {}
    shows = {"unit": "step", "disable": quiet or None, "dynamic_ncols": True}
    with tqdm(total=settings.steps, initial=step, **shows) as bar:
        while step < settings.steps:
            torch.manual_seed(settings.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                loss, figures = loss_of(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                # A short memory at first, so that the average does not hold on to random weights.
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
                    "Use a lower --learning-rate; the last checkpoint is kept.",
                )
            pace = (step - since) * settings.batch_size / (time.monotonic() - started)
            bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()} | {"images/s": f"{pace:.1f}"})
            bar.update()
            if step % 50 == 0 or step == settings.steps:
                record = {"step": step, "rate": settings.rate(step), "images_per_s": round(pace, 2)}
                record |= {k: round(v, 5) for k, v in shown.items()}
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
            if step % settings.save_every == 0 or step == settings.steps:
                state = {
                    "step": step,
                    "settings": asdict(settings),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "memory": dict(memory),
                }
                write_atomic(folder / "state.pt", partial(torch.save, state), overwrite=True)
                with swapped(model, average):
                    sample(model, folder / f"sample-{step:06d}.png")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(average[name])
    return model


def resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    memory: Mapping[str, Tensor],
    settings: TrainSettings,
) -> int:
    """Go on from ``path`` where it exists; returns the number of steps done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        differing = [
            name
            for name, value in asdict(settings).items()
            if name not in ("save_every", "compile") and state["settings"].get(name) != value
        ]
        if not differing:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            for kept, there in ((average, state["average"]), (memory, state["memory"])):
                for name, tensor in kept.items():
                    tensor.copy_(there[name])
    except Exception as error:
        raise CheckpointError(
            f"{path.name} in {path.parent} cannot go on with this model ({str(error).splitlines()[0]}).",
            "Train into another folder, or remove that file to start anew.",
        ) from error
    if differing:
        raise CheckpointError(
            f"{path.parent} holds a run with other settings: {', '.join(differing)}.",
            "Give the same settings to go on, or another folder to start anew.",
        )
    return int(state["step"])


class swapped:  # noqa: N801
    """Within the block the model has the averaged weights."""

    def __init__(self, model: nn.Module, average: dict[str, Tensor]) -> None:
        self.model, self.average = model, average

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._put(self.average)

    def __exit__(self, *_: object) -> None:
        self._put(self.kept)

    def _put(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
