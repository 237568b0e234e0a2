import torch
import torch.nn as nn

from ._ops import ops


def _same_shape(op, x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    op(out, x)
    return out


def _halved(op, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape[:-1] + (x.shape[-1] // 2,), dtype=x.dtype, device=x.device)
    op(out, x)
    return out


class SiLU(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _same_shape(ops.silu, input)


class GeLU(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _same_shape(ops.gelu, input)


class GeluTanh(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _same_shape(ops.gelu_tanh, input)


class NewGELU(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _same_shape(ops.gelu_new, input)


class FastGELU(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _same_shape(ops.gelu_fast, input)


class QuickGELU(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _same_shape(ops.gelu_quick, input)


class SiluAndMul(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _halved(ops.silu_and_mul, x)


class MulAndSilu(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _halved(ops.mul_and_silu, x)


class GeluAndMul(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _halved(ops.gelu_and_mul, x)


class GeluTanhAndMul(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _halved(ops.gelu_tanh_and_mul, x)


__all__ = ["SiLU", "GeLU", "GeluTanh", "NewGELU", "FastGELU", "QuickGELU", "SiluAndMul", "MulAndSilu",
           "GeluAndMul", "GeluTanhAndMul"]
