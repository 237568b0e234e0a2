import torch
import torch.nn as nn

from ._ops import ops

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")  # in the order of the op's numbers


def number_of(act: str) -> int:
    if act not in ACTIVATIONS:
        raise ValueError(f"[mlp] act: expected one of {', '.join(ACTIVATIONS)}, got {act}")
    return ACTIVATIONS.index(act)


def _mlp(module: nn.Module, x: torch.Tensor, act: str) -> torch.Tensor:
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    return ops.mlp(x.contiguous(), gate.weight, up.weight, down.weight, number_of(act), gate.bias, up.bias, down.bias)


class SwiGLUMLP(nn.Module):
    """For modules whose act_fn is silu (LlamaMLP)."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _mlp(self, x, "silu")


class GeGLUMLP(nn.Module):
    """For modules whose act_fn is gelu's tanh form (GemmaMLP)."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _mlp(self, x, "gelu_tanh")


__all__ = ["SwiGLUMLP", "GeGLUMLP"]
