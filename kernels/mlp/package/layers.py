from typing import Optional

import torch
import torch.nn as nn

from ._ops import add_op_namespace_prefix, ops

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")  # in the order of the op's numbers


def number_of(act: str) -> int:
    if act not in ACTIVATIONS:
        raise ValueError(f"[mlp] act: expected one of {', '.join(ACTIVATIONS)}, got {act}")
    return ACTIVATIONS.index(act)


def _fake_backward(grad_out, x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias, weights):
    wanted = (gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)
    return (x.new_empty(x.shape), *(x.new_empty(0) if not weights or each is None else each.new_empty(each.shape)
                                    for each in wanted))


def _fake_train(x, gate_weight, *arguments):
    inner = (*x.shape[:-1], gate_weight.shape[0])
    return x.new_empty(x.shape), x.new_empty(inner), x.new_empty(inner)


def _fake(name: str, function) -> None:
    """Shapes for tracing, symbolic sizes included: the library's own Meta ops know numbers only."""
    torch.library.register_fake(add_op_namespace_prefix(name), function, allow_override=True)


_fake("mlp", lambda x, *arguments: x.new_empty(x.shape))
_fake("mlp_backward", _fake_backward)
_fake("mlp_train", _fake_train)
_fake("mlp_train_backward", lambda grad_out, x, gate, up, *arguments: _fake_backward(grad_out, x, *arguments))


class _Mlp(torch.autograd.Function):
    """Keeps gate and up; the backward makes their activated product again."""

    @staticmethod
    def forward(ctx, x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias):
        out, gate, up = ops.mlp_train(x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias)
        ctx.save_for_backward(x, gate, up, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)
        ctx.act = act
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _gradients(ctx, ops.mlp_train_backward, grad)


class _LeanMlp(torch.autograd.Function):
    """Keeps the input and the weights alone: the backward makes gate and up again, a fifth more products."""

    @staticmethod
    def forward(ctx, x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias):
        ctx.save_for_backward(x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)
        ctx.act = act
        return ops.mlp(x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _gradients(ctx, ops.mlp_backward, grad)


def _gradients(ctx, op, grad):
    *tensors, gate_bias, up_bias, down_bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads = op(grad.contiguous(), *tensors, ctx.act, gate_bias, up_bias, down_bias, any(needs[1:]))
    grads = (*grads[:4], None, *grads[4:])
    return tuple(g if needed else None for g, needed in zip(grads, needs))


def mlp(x: torch.Tensor, gate_weight: torch.Tensor, up_weight: torch.Tensor, down_weight: torch.Tensor, act: str,
        gate_bias=None, up_bias=None, down_bias=None, recompute: bool = False) -> torch.Tensor:
    """(act(x @ gate.T) * (x @ up.T)) @ down.T, with act one of silu, gelu and gelu_tanh. Differentiable.

    Where gradients are recorded, x @ gate.T and x @ up.T are kept for them; with recompute they are made again."""
    arguments = (x.contiguous(), gate_weight, up_weight, down_weight, number_of(act), gate_bias, up_bias, down_bias)
    tensors = (x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return (_LeanMlp if recompute else _Mlp).apply(*arguments)
    return ops.mlp(*arguments)


def _forward(module: nn.Module, x: torch.Tensor, act: str) -> torch.Tensor:
    """Under autocast the input is wider than the products: the adopting class casts as it should."""
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    unusual = x.dtype != gate.weight.dtype or torch.is_autocast_enabled(x.device.type)
    if unusual and type(module).__module__ != __name__:
        return type(module).forward(module, x)
    return mlp(x, gate.weight, up.weight, down.weight, act, gate.bias, up.bias, down.bias)


class SwiGLUMLP(nn.Module):
    """For modules whose act_fn is silu (LlamaMLP)."""

    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _forward(self, x, "silu")


class GeGLUMLP(nn.Module):
    """For modules whose act_fn is gelu's tanh form (GemmaMLP)."""

    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _forward(self, x, "gelu_tanh")


class MLP(nn.Module):
    """For modules whose act_fn is any that the package has, gelu by erf among them."""

    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        act = getattr(self, "graft_act", None) or _name_of(self.act_fn)
        if act is None:
            return type(self).forward(self, x)
        return _forward(self, x, act)


# By class: PyTorch's, and transformers' of every version.
_NAMES = {"SiLU": "silu", "SiLUActivation": "silu", "GELU": "gelu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh",
          "PytorchGELUTanh": "gelu_tanh"}


def _name_of(act_fn: nn.Module) -> Optional[str]:
    if getattr(act_fn, "approximate", None) == "tanh":
        return "gelu_tanh"
    return _NAMES.get(type(act_fn).__name__)


__all__ = ["SwiGLUMLP", "GeGLUMLP", "MLP", "mlp"]
