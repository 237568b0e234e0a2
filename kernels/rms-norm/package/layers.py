from typing import Optional

import torch
import torch.nn as nn

from ._ops import add_op_namespace_prefix, ops

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_GATES = ("silu", "sigmoid")  # in the order of the op's numbers


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _fake(name: str, function) -> None:
    """Shapes for tracing, symbolic sizes included: the library's own Meta ops know numbers only, and a graph of
    theirs would hold for one length of input."""
    torch.library.register_fake(add_op_namespace_prefix(name), function, allow_override=True)


def _result_dtype(x: torch.Tensor, weight: torch.Tensor, variant: int) -> torch.dtype:
    return torch.promote_types(x.dtype, weight.dtype) if variant == 0 else x.dtype


def _layer_gradient(x: torch.Tensor, weight: Optional[torch.Tensor]) -> torch.Tensor:
    return x.new_empty(x.shape[-1:], dtype=x.dtype if weight is None else weight.dtype)


_fake("rms_norm", lambda x, weight, eps, variant: x.new_empty(x.shape, dtype=_result_dtype(x, weight, variant)))
_fake("rms_norm_backward", lambda grad_out, x, weight, eps, variant: (x.new_empty(x.shape), torch.empty_like(weight)))
_fake("gated_rms_norm", lambda x, gate, weight, eps, variant, act, gate_first: x.new_empty(x.shape))
_fake("gated_rms_norm_backward", lambda grad_out, x, gate, weight, eps, variant, act, gate_first:
      (x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape)))
_fake("layer_norm", lambda x, weight, bias, eps: x.new_empty(x.shape))
_fake("layer_norm_backward", lambda grad_out, x, weight, eps:
      (x.new_empty(x.shape), _layer_gradient(x, weight), _layer_gradient(x, weight)))
for _name in ("rms_norm_out", "rms_norm_backward_out", "add_rms_norm_out", "add_rms_norm_backward_out", "gated_rms_norm_out",
              "gated_rms_norm_backward_out", "layer_norm_out", "layer_norm_backward_out"):
    _fake(_name, lambda *arguments: None)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, variant):
        x = _rows(x)
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.variant = eps, variant
        return ops.rms_norm(x, weight, eps, variant)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = ops.rms_norm_backward(_rows(grad), x, weight, ctx.eps, ctx.variant)
        return grad_x, grad_weight, None, None


class _Beside(torch.autograd.Function):
    """The norm of x, and x itself, whose gradient from elsewhere is added where the norm's is written."""

    @staticmethod
    def forward(ctx, x, weight, eps, variant):
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.variant = eps, variant
        return ops.rms_norm(x, weight, eps, variant), x

    @staticmethod
    def backward(ctx, grad, grad_x):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = ops.add_rms_norm_backward(_rows(grad), _rows(grad_x), x, weight, ctx.eps, ctx.variant)
        return grad_x, grad_weight, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps, variant):
        normed, total = ops.add_rms_norm(x, residual, weight, eps, variant)
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.variant = eps, variant
        return normed, total

    @staticmethod
    def backward(ctx, grad, grad_total):
        total, weight = ctx.saved_tensors
        grad_x, grad_weight = ops.add_rms_norm_backward(_rows(grad), _rows(grad_total), total, weight, ctx.eps,
                                                        ctx.variant)
        return grad_x, grad_x, grad_weight, None, None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, weight, *options):
        ctx.save_for_backward(x, gate, weight)
        ctx.options = options
        return ops.gated_rms_norm(x, gate, weight, *options)

    @staticmethod
    def backward(ctx, grad):
        grads = ops.gated_rms_norm_backward(_rows(grad), *ctx.saved_tensors, *ctx.options)
        return (*grads, None, None, None, None)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return ops.layer_norm(x, weight, bias, eps)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grads = ops.layer_norm_backward(_rows(grad), x, weight, ctx.eps)
        return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None)


def _records(*tensors: Optional[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, variant: int = 0,
                   act: str = "silu", gate_first: bool = False) -> torch.Tensor:
    """norm(x) * act(gate), or norm(x * act(gate)) with the gate first. A weight of two dimensions norms each of the
    groups in the dimension before the last by its own row. Differentiable."""
    if act not in _GATES:
        raise ValueError(f"[gated_rms_norm] act: expected silu or sigmoid, got {act!r}")
    options = (eps, variant, _GATES.index(act), gate_first)
    x, gate = _rows(x), _rows(gate)
    if _records(x, gate, weight):
        return _GatedRMSNorm.apply(x, gate, weight, *options)
    return ops.gated_rms_norm(x, gate, weight, *options)


def layer_norm(x: torch.Tensor, weight: Optional[torch.Tensor] = None, bias: Optional[torch.Tensor] = None,
               eps: float = 1e-5) -> torch.Tensor:
    """(x - mean) * rsqrt(variance + eps) * weight + bias over the last dimension. Differentiable."""
    x = _rows(x)
    if _records(x, weight, bias):
        return _LayerNorm.apply(x, weight, bias, eps)
    return ops.layer_norm(x, weight, bias, eps)


def _is_adopted(module: nn.Module) -> bool:
    """Whether the class is a model's own, so that its forward is the formula to fall back on."""
    return type(module).__module__ != __name__


def _is_unusual(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return x.dtype != weight.dtype or x.dtype not in _DTYPES


def _eps_of(module: nn.Module) -> float:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


def _forward(module: nn.Module, x: torch.Tensor, default_variant: int) -> torch.Tensor:
    """`graft_variant` names where the adopting class rounds; upstream's protocol has no place to say it.

    Under autocast the input is narrower than the weight, and a float64 model exists too: both keep the formula
    of the adopting class, since the result's dtype follows from it."""
    weight = module.weight
    if _is_unusual(x, weight) and _is_adopted(module):
        return type(module).forward(module, x)
    eps = _eps_of(module)
    variant = getattr(module, "graft_variant", default_variant)
    if _records(x, weight):
        return _RMSNorm.apply(x, weight, eps, variant)
    return ops.rms_norm(_rows(x), weight, eps, variant)


class RMSNorm(nn.Module):
    """LlamaRMSNorm and its like: the weight multiplies what was cast back to the input's dtype."""

    weight: torch.Tensor
    variance_epsilon: float
    graft_variant: int

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _forward(self, hidden_states, 0)


class RMSNormZeroCentered(nn.Module):
    """Gemma's: the factor is 1 + weight, and rounding comes last."""

    weight: torch.Tensor
    eps: float
    graft_variant: int

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _forward(self, hidden_states, 3)


class AddRMSNorm(nn.Module):
    """RMSNorm of a sum: gives the norm and the sum. `join` and `beside` take the norm's module from elsewhere."""

    weight: torch.Tensor
    variance_epsilon: float
    graft_variant: int

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor):
        return AddRMSNorm.join(hidden_states, residual, self)

    @staticmethod
    def join(x: torch.Tensor, residual: torch.Tensor, norm: nn.Module):
        """Returns (norm(x + residual), x + residual), with gradients."""
        return _AddRMSNorm.apply(_rows(x), _rows(residual), norm.weight, _eps_of(norm), getattr(norm, "graft_variant", 0))

    @staticmethod
    def beside(x: torch.Tensor, norm: nn.Module):
        """Returns (norm(x), x), with gradients."""
        return _Beside.apply(_rows(x), norm.weight, _eps_of(norm), getattr(norm, "graft_variant", 0))


class RMSNormGated(nn.Module):
    """Qwen3NextRMSNormGated: the norm, times silu of the gate.

    The graft_* attributes name what an adopting class does otherwise: the numeric variant, the gate before the norm
    (MambaRMSNormGated), the number of groups that are normed apart (Zamba2RMSNormGated), the function of the gate,
    which is otherwise `activation` or silu."""

    weight: torch.Tensor
    variance_epsilon: float
    activation: str
    graft_variant: int
    graft_gate_first: bool
    graft_groups: int
    graft_act: str

    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: torch.Tensor, gate: Optional[torch.Tensor] = None) -> torch.Tensor:
        weight = self.weight
        fits = gate is not None and gate.shape == hidden_states.shape and gate.dtype == hidden_states.dtype
        if (not fits or _is_unusual(hidden_states, weight)) and _is_adopted(self):
            return type(self).forward(self, hidden_states, gate)
        groups = getattr(self, "graft_groups", 1)
        shape = hidden_states.shape
        if groups > 1:
            split = (*shape[:-1], groups, shape[-1] // groups)
            hidden_states, gate = hidden_states.reshape(split), gate.reshape(split)
            weight = weight.view(split[-2:])
        result = gated_rms_norm(hidden_states, gate, weight, _eps_of(self), getattr(self, "graft_variant", 0),
                                getattr(self, "graft_act", getattr(self, "activation", "silu")),
                                getattr(self, "graft_gate_first", False))
        return result.view(shape) if groups > 1 else result


class LayerNorm(nn.Module):
    """nn.LayerNorm over the last dimension. Autocast makes a float32 result of a narrower input: the adopting class
    does that itself."""

    weight: Optional[torch.Tensor]
    bias: Optional[torch.Tensor]
    eps: float

    can_torch_compile = True
    has_backward = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        widens = input.dtype != torch.float32 and torch.is_autocast_enabled(input.device.type)
        unusual = input.dtype not in _DTYPES or any(
            factor is not None and factor.dtype != input.dtype for factor in (weight, bias))
        if (widens or unusual) and _is_adopted(self):
            return type(self).forward(self, input)
        return layer_norm(input, weight, bias, self.eps)


__all__ = ["RMSNorm", "AddRMSNorm", "RMSNormZeroCentered", "RMSNormGated", "LayerNorm", "gated_rms_norm", "layer_norm"]
