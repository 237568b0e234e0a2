"""The gated MLP (SwiGLU, GeGLU) in one call, for inference."""

from . import layers
from ._ops import ops


def mlp(x, gate_weight, up_weight, down_weight, act, gate_bias=None, up_bias=None, down_bias=None):
    """(act(x @ gate.T) * (x @ up.T)) @ down.T, with act one of silu, gelu and gelu_tanh."""
    return ops.mlp(x.contiguous(), gate_weight, up_weight, down_weight, layers.number_of(act), gate_bias, up_bias, down_bias)


__all__ = ["layers", "ops", "mlp"]
