"""Cross-entropy of logits, and of a linear layer's logits without keeping them (T x V never exists at once).

A row's loss is lse - (1 - smoothing) * z[label] - smoothing * mean(z), with z the logits, or with a soft cap
softcap * tanh(logits / softcap). Rows whose label is `ignore_index` count for nothing.
"""

from . import layers
from ._ops import ops
from .layers import cross_entropy, linear_cross_entropy

__all__ = ["layers", "ops", "cross_entropy", "linear_cross_entropy"]
