"""The optimiser Muon for matrices and convolutions (github.com/KellerJordan/Muon), as PyTorch has it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """Muon that also takes convolutions: a kernel is a matrix with a row for each of its outputs.

    Args:
        parameters: of two dimensions, or contiguous kernels; these must keep their memory.
        rate: learning rate; steps are scaled to AdamW's size.
        weight_decay: of all parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> None:
        self.kernels: list[tuple[Tensor, Tensor]] = []  # parameters, and the matrices that share their memory
        matrices: list[Tensor] = []
        for parameter in parameters:
            matrices.append(parameter if parameter.ndim == 2 else parameter.detach().view(len(parameter), -1))
            if parameter.ndim > 2:
                self.kernels.append((parameter, matrices[-1]))
        groups = [{"params": matrices, "share": 1.0}]
        super().__init__(groups, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self) -> None:  # type: ignore[override]
        """Take a step by the gradients of the parameters."""
        for kernel, matrix in self.kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()
        for _, matrix in self.kernels:
            matrix.grad = None
