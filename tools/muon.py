"""Muon: momentum whose direction is made orthogonal (K. Jordan and others, 2024)."""

from __future__ import annotations

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal by five Newton-Schulz steps (Jordan and others, 2024).

    torch.optim.Muon does the same in bfloat16, which a processor without native bfloat16 takes forty times as long for.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] # no closure is ever given
        """Update each matrix; the update has the RMS that AdamW's usually has (0.2)."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, same in by_shape.items():
                moved = []
                for parameter in same:
                    kept = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    kept.lerp_(parameter.grad, 1 - group["momentum"])
                    moved.append(parameter.grad.lerp(kept, group["momentum"]))
                for parameter, update in zip(same, orthogonal(torch.stack(moved)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return nearly orthogonal matrices [n, rows, columns] with the same singular vectors."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT
