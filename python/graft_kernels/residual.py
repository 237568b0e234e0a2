"""The sums of a decoder layer joined to its norms, for training: two passes over the residual less in each direction.

Llama's order of work is norm, attention, sum, norm, MLP, sum. The class's own forward runs on a view of the layer: its
attention answers with an addend, whose sum with the residual has its norm made beside it; and the first norm hands its
input on, so that the residual's gradient is added where the norm's is written.
"""

import functools
import inspect
import types
from typing import Callable

import torch
import torch.nn as nn

from . import variants
from .view import View

NORMS = ("input_layernorm", "post_attention_layernorm")
ATTENTION, MLP = "self_attn", "mlp"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Addend:
    """What attention answered with, before the residual is added."""

    def __init__(self, value: torch.Tensor, join: Callable):
        self.value, self.join = value, join

    def __radd__(self, residual: torch.Tensor):
        return _Joined(*self.join(self.value, residual))


class _Joined:
    """A sum with its norm beside it."""

    def __init__(self, normed: torch.Tensor, total: torch.Tensor):
        self.normed, self.total = normed, total

    def __add__(self, other: torch.Tensor):
        return self.total + other


def _joined_view(module: nn.Module, attention: Callable, first_norm: Callable, join: Callable, **more) -> View:
    """join(addend, residual) -> (norm of the sum, sum)."""

    def attend(*args, **kwargs):
        value, *rest = attention(*args, **kwargs)
        return (_Addend(value, join), *rest)

    return View(module, **{ATTENTION: attend, NORMS[0]: first_norm, NORMS[1]: lambda total: total.normed}, **more)


def may_join(module: nn.Module) -> bool:
    """Whether a module is a layer of Llama's order whose norms are the package's: tried on its class."""
    norms = [getattr(module, name, None) for name in NORMS]
    if any(not isinstance(getattr(module, name, None), nn.Module) for name in (*NORMS, ATTENTION, MLP)):
        return False
    if not all(_is_ours(norm) for norm in norms):
        return False
    generator = torch.Generator().manual_seed(7)
    with torch.device("cpu"), torch.no_grad():
        x = torch.randn(2, 5, 8, generator=generator)

        def attend(hidden_states, *args, **kwargs):
            return hidden_states.cos(), None

        plain = View(module, **{NORMS[0]: torch.sin, ATTENTION: attend, NORMS[1]: torch.erf, MLP: torch.tanh})
        joined = _joined_view(module, attend, torch.sin, lambda value, residual:
                              (torch.erf(residual + value), residual + value), **{MLP: torch.tanh})
        total = x + x.sin().cos()
        expected = total + total.erf().tanh()
        return all(torch.equal(_run(module, view, x), expected) for view in (plain, joined))


def _is_ours(norm: nn.Module) -> bool:
    """Whether the package has the norm, and nobody waits for it to be called."""
    hooked = norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
    has_weight = isinstance(getattr(norm, "weight", None), torch.Tensor)
    return has_weight and not hooked and variants.norm_variant(type(norm), norm) is not None


def _run(module: nn.Module, view: View, x: torch.Tensor) -> torch.Tensor:
    try:
        result = inspect.unwrap(type(module).forward)(view, x)
    except Exception:  # a layer that needs more than its four parts is none of Llama's order
        return x.new_empty(0)
    result = result[0] if isinstance(result, tuple) else result
    return result if isinstance(result, torch.Tensor) else x.new_empty(0)


def forward(module: nn.Module, layer: type) -> Callable:
    """Returns the forward that takes the class's place; what does not train goes through the class's own."""
    own = type(module).forward

    @functools.wraps(own)
    def fused(self, hidden_states, *args, **kwargs):
        first, second = (getattr(self, name) for name in NORMS)
        if not _trains(hidden_states, first, second) or _checkpoints(self):
            return own(self, hidden_states, *args, **kwargs)
        normed, hidden_states = layer.beside(hidden_states, first)
        view = _joined_view(self, self.self_attn, lambda _: normed,
                            lambda value, residual: layer.join(value, residual, second))
        return own(view, hidden_states, *args, **kwargs)

    return types.MethodType(fused, module)


def _checkpoints(module: nn.Module) -> bool:
    """Whether the class's forward may run its layer twice, of which a view knows nothing."""
    return module.training and getattr(module, "gradient_checkpointing", False)


def _trains(x: torch.Tensor, *norms: nn.Module) -> bool:
    return (torch.is_grad_enabled() and x.dtype in _DTYPES and all(norm.weight.dtype == x.dtype for norm in norms)
            and not torch.is_autocast_enabled(x.device.type) and not torch.compiler.is_compiling())
