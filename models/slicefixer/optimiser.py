"""Muon for what are matrices, AdamW for the rest."""

import torch
from torch import nn


class Optimiser:
    """Muon (Jordan 2024) on every convolution and linear layer, AdamW on biases, tables and what has few rows or columns.

    A gradient's directions all get the same length, so that the few that dominate at first, those of a volume's own values, do not hide
    those of what is unexplained: 300 steps come as far as 1450 of AdamW alone; an eighth of a step is its own.
    """

    def __init__(self, model: nn.Module, rate: float):
        tables = {id(p) for name, p in model.named_parameters(recurse=True) if name.split(".")[-1] not in ("weight", "bias")}
        self.parameters = [p for p in model.parameters() if is_matrix(p) and id(p) not in tables]
        # The same memory as matrices, a row a channel that comes out: what Muon takes.
        self.matrices = [nn.Parameter(flat(p.data)) for p in self.parameters]
        if any(p.data_ptr() != m.data_ptr() for p, m in zip(self.parameters, self.matrices, strict=True)):
            raise ValueError("the model must be in torch.channels_last")
        taken = {id(p) for p in self.parameters}
        others = [p for p in model.parameters() if id(p) not in taken]
        # Steps as long as AdamW's would be (Moonshot's adjustment), so that one rate serves both.
        self.muon = torch.optim.Muon(self.matrices, lr=rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
        # Behind layers that begin at zero gradients are as small as 1e-11: with the usual epsilon of 1e-8 they would not count.
        self.adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), eps=1e-15, weight_decay=1e-2)

    def set_rate(self, rate: float) -> None:
        for group in self.muon.param_groups + self.adam.param_groups:
            group["lr"] = rate

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self.adam.zero_grad()

    def step(self) -> None:
        for parameter, matrix in zip(self.parameters, self.matrices, strict=True):
            # None: nothing flowed there, which is so in an ablation.
            matrix.grad = None if parameter.grad is None else flat(parameter.grad)
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def is_matrix(parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 16


def flat(values: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of a weight; for weights, whose channels are last, the same memory."""
    return values if values.ndim == 2 else values.permute(0, 2, 3, 1).flatten(1)
