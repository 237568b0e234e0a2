"""The gated MLP (SwiGLU, GeGLU) in one call, for inference and training."""

from . import layers
from ._ops import ops
from .layers import mlp

__all__ = ["layers", "ops", "mlp"]
