"""The linear layer: y = x weight^T + bias, weights read where they lie, sums in float32."""

from typing import Optional

import torch

from . import layers
from ._ops import add_op_namespace_prefix, ops

ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh", "gelu_quick", "relu")  # in the order of the op's numbers

# Shapes for tracing, symbolic sizes included: the library's own Meta op knows numbers only.
torch.library.register_fake(add_op_namespace_prefix("linear_act"),
                            lambda x, weight, *arguments: x.new_empty((*x.shape[:-1], weight.shape[0])),
                            allow_override=True)
for _name in ("linear_out", "linear_act_out", "linear_join_out", "packed_linear_out", "packed_linear_join_out"):
    torch.library.register_fake(add_op_namespace_prefix(_name), lambda *arguments: None, allow_override=True)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None,
           out: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Multiplies the rows of `x` with the rows of `weight`; writes into `out` where given."""
    if out is None:
        return ops.linear(x, weight, bias)
    ops.linear_out(out, x, weight, bias)
    return out


def linear_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None, act: str = "none",
               residual: Optional[torch.Tensor] = None, out: Optional[torch.Tensor] = None) -> torch.Tensor:
    """act(x @ weight.T + bias) + residual, with act one of none, silu, gelu, gelu_tanh, gelu_quick and relu.

    `out` may be `residual` itself. Not differentiable.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"[linear_act] act: expected one of {', '.join(ACTIVATIONS)}, got {act}")
    number = ACTIVATIONS.index(act)
    if out is None:
        return ops.linear_act(x, weight, bias, number, residual)
    ops.linear_act_out(out, x, weight, bias, number, residual)
    return out


__all__ = ["layers", "linear", "linear_act"]
