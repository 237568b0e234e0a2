import torch
import torch.nn as nn

from ._ops import add_op_namespace_prefix, ops

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _register_fakes() -> None:
    """Every op writes into what it is given, so tracing, with symbolic sizes too, has nothing to shape."""
    alone = ("silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "gelu_quick")
    gated = ("silu_mul", "gelu_mul", "gelu_tanh_mul")
    halves = ("silu_and_mul", "mul_and_silu", "gelu_and_mul", "gelu_tanh_and_mul")
    pairs = ("swigluoai_and_mul", "swigluoai_and_mul_backward")
    for name in (*alone, *gated, *halves, *(f"{name}_backward" for name in alone + gated), *pairs):
        torch.library.register_fake(add_op_namespace_prefix(name), lambda *arguments: None, allow_override=True)


_register_fakes()


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, name):
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.name = name
        out = torch.empty_like(x)
        getattr(ops, name)(out, x)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        getattr(ops, ctx.name + "_backward")(grad_x, grad.contiguous(), x)
        return grad_x, None


def _activation(module: nn.Module, x: torch.Tensor, name: str) -> torch.Tensor:
    """A float64 model keeps the formula of the class that adopts the layer."""
    if x.dtype not in _DTYPES and type(module).__module__ != __name__:
        return type(module).forward(module, x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Activation.apply(x, name)
    x = x.contiguous()
    out = torch.empty_like(x)
    getattr(ops, name)(out, x)
    return out


class _Gated(torch.autograd.Function):
    """name(gate) * up for the halves of the last dimension; gate_first says which is which."""

    @staticmethod
    def forward(ctx, x, name, gate_first):
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.name, ctx.gate_first = name, gate_first
        out = torch.empty(x.shape[:-1] + (x.shape[-1] // 2,), dtype=x.dtype, device=x.device)
        gate, up = _halves(x, gate_first)
        getattr(ops, name + "_mul")(out, gate, up)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        getattr(ops, ctx.name + "_mul_backward")(
            *_halves(grad_x, ctx.gate_first), grad.contiguous(), *_halves(x, ctx.gate_first))
        return grad_x, None, None


def _halves(x: torch.Tensor, gate_first: bool):
    first, second = x.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


class _Swigluoai(torch.autograd.Function):
    """Pairs (gate, up) that lie side by side in the last dimension."""

    @staticmethod
    def forward(ctx, x, alpha, limit):
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.alpha, ctx.limit = alpha, limit
        out = torch.empty(x.shape[:-1] + (x.shape[-1] // 2,), dtype=x.dtype, device=x.device)
        ops.swigluoai_and_mul(out, x, alpha, limit)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        ops.swigluoai_and_mul_backward(grad_x, grad.contiguous(), x, ctx.alpha, ctx.limit)
        return grad_x, None, None


class SiLU(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _activation(self, input, "silu")


class GeLU(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _activation(self, input, "gelu")


class GeluTanh(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _activation(self, input, "gelu_tanh")


class NewGELU(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _activation(self, input, "gelu_new")


class FastGELU(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _activation(self, input, "gelu_fast")


class QuickGELU(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _activation(self, input, "gelu_quick")


class SiluAndMul(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Gated.apply(x, "silu", True)


class MulAndSilu(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Gated.apply(x, "silu", False)


class GeluAndMul(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Gated.apply(x, "gelu", True)


class GeluTanhAndMul(nn.Module):
    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Gated.apply(x, "gelu_tanh", True)


class SwigluOAIAndMul(nn.Module):
    """gpt-oss' activation; a module that adopts the layer may have an alpha and a limit of its own."""

    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Swigluoai.apply(x, getattr(self, "alpha", 1.702), getattr(self, "limit", 7.0))


__all__ = ["SiLU", "GeLU", "GeluTanh", "NewGELU", "FastGELU", "QuickGELU", "SiluAndMul", "MulAndSilu",
           "GeluAndMul", "GeluTanhAndMul", "SwigluOAIAndMul"]
