"""Activations, alone and as the gate of a product. Ops, names and schemas as the Hub's `activation` kernel."""

import torch

from . import layers
from ._ops import ops


def silu(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.silu(out, x)


def gelu(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu(out, x)


def gelu_tanh(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu_tanh(out, x)


def gelu_new(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu_new(out, x)


def gelu_fast(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu_fast(out, x)


def gelu_quick(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu_quick(out, x)


def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    """out = silu(x[..., :d]) * x[..., d:]"""
    ops.silu_and_mul(out, x)


def mul_and_silu(out: torch.Tensor, x: torch.Tensor) -> None:
    """out = x[..., :d] * silu(x[..., d:])"""
    ops.mul_and_silu(out, x)


def gelu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu_and_mul(out, x)


def gelu_tanh_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    ops.gelu_tanh_and_mul(out, x)


def silu_mul(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
    """out = silu(gate) * up; gate and up may be strided halves of one projection."""
    ops.silu_mul(out, gate, up)


def gelu_mul(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
    ops.gelu_mul(out, gate, up)


def gelu_tanh_mul(out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
    ops.gelu_tanh_mul(out, gate, up)


def swigluoai_and_mul(out: torch.Tensor, x: torch.Tensor, alpha: float = 1.702, limit: float = 7.0) -> None:
    """gpt-oss' activation of pairs (gate, up) that lie side by side in x: gate is clamped from above, up on both sides,
    out = (up + 1) * gate * sigmoid(alpha * gate)."""
    ops.swigluoai_and_mul(out, x, alpha, limit)


__all__ = ["layers", "silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "gelu_quick", "silu_and_mul",
           "mul_and_silu", "gelu_and_mul", "gelu_tanh_and_mul", "silu_mul", "gelu_mul", "gelu_tanh_mul",
           "swigluoai_and_mul"]
