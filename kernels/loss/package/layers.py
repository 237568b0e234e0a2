from typing import Optional, Union

import torch
import torch.nn as nn

from ._ops import ops


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, options):
        logits = _rows(logits)
        loss, lse = ops.cross_entropy(logits, labels, *options)
        ctx.save_for_backward(logits, labels, lse)
        ctx.options = options
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        logits, labels, lse = ctx.saved_tensors
        return ops.cross_entropy_backward(grad, logits, labels, lse, *ctx.options), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """Losses of rows; the backward makes the logits again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, options):
        loss, lse = ops.linear_cross_entropy(hidden, weight, bias, labels, *options)
        ctx.save_for_backward(hidden, weight, bias, labels, lse)
        ctx.options = options
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, labels, lse = ctx.saved_tensors
        grads = ops.linear_cross_entropy_backward(grad, hidden, weight, bias, labels, lse, *ctx.options,
                                                  ctx.needs_input_grad[1])
        return _wanted(ctx, grads) + (None, None)


class _TrainedLinearCrossEntropy(torch.autograd.Function):
    """The sum of scale * loss; gradients are made beside the loss, while the logits are there."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, scale, options):
        loss, lse, *grads = ops.linear_cross_entropy_train(
            scale.expand(hidden.shape[:-1]), hidden, weight, bias, labels, *options, ctx.needs_input_grad[1])
        ctx.options = options
        if hidden.is_cuda and not torch.compiler.is_compiling():
            ctx.grads = grads
            ctx.save_for_backward(hidden, weight, bias, labels, lse, scale)
        else:
            ctx.save_for_backward(*grads)
        return loss.sum() * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grads = _handed_over(ctx, grad) if hasattr(ctx, "grads") else [
            g * grad.to(g.dtype) for g in ctx.saved_tensors]
        return _wanted(ctx, grads) + (None, None, None)


def _handed_over(ctx, grad):
    """The gradients themselves, scaled where they lie; a second backward through the same graph makes them again."""
    grads, ctx.grads = ctx.grads, None
    hidden, weight, bias, labels, lse, scale = ctx.saved_tensors
    if grads is None:
        return ops.linear_cross_entropy_backward((grad * scale).expand(hidden.shape[:-1]), hidden, weight, bias, labels,
                                                 lse, *ctx.options, ctx.needs_input_grad[1])
    for g in grads:
        ops.scale_gradient_(g, grad)
    return grads


class _EmbeddingBeside(torch.autograd.Function):
    """Rows of a weight, and the weight itself for a head: where the head's gradient comes back, the rows' is added to it."""

    @staticmethod
    def forward(ctx, ids, weight, padding):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding = weight.shape[0], padding
        return nn.functional.embedding(ids, weight), weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_weight):
        (ids,) = ctx.saved_tensors
        if grad is None or grad_weight is None or not grad_weight.is_cuda or not grad_weight.is_contiguous():
            own = None if grad is None else torch.ops.aten.embedding_dense_backward(grad, ids, ctx.rows, ctx.padding, False)
            return None, own if grad_weight is None else grad_weight if own is None else grad_weight.add_(own), None
        ids, order = ids.reshape(-1).sort(stable=True)
        ops.add_rows_(grad_weight, grad.reshape(-1, grad.shape[-1]).contiguous(), ids, order, ctx.padding)
        return None, grad_weight, None


def _wanted(ctx, grads):
    return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad))


def _reduce(losses, labels, reduction, num_items, ignore_index):
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total * _scale(labels, num_items, ignore_index)


def _scale(labels, num_items, ignore_index):
    """One over the number of items: of those that count, unless given."""
    if num_items is None:
        num_items = (labels != ignore_index).sum()
    if not torch.is_tensor(num_items):
        return torch.full((), 1.0 / num_items, dtype=torch.float32, device=labels.device)
    return 1.0 / num_items.to(device=labels.device, dtype=torch.float32).reshape(())


def _check_reduction(reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"[loss] reduction: expected mean, sum or none, got {reduction!r}")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100, softcap: float = 0.0,
                  smoothing: float = 0.0, reduction: str = "mean",
                  num_items: Optional[Union[torch.Tensor, int]] = None) -> torch.Tensor:
    """Cross-entropy over the last dimension of `logits`; the mean is over `num_items`, or over what counts."""
    _check_reduction(reduction)
    losses = _CrossEntropy.apply(logits, labels, (ignore_index, softcap, smoothing))
    return _reduce(losses, labels, reduction, num_items, ignore_index)


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor,
                         bias: Optional[torch.Tensor] = None, ignore_index: int = -100, softcap: float = 0.0,
                         smoothing: float = 0.0, reduction: str = "mean",
                         num_items: Optional[Union[torch.Tensor, int]] = None,
                         chunk_rows: int = 0) -> torch.Tensor:
    """Cross-entropy of `hidden @ weight.T + bias` without keeping the logits.

    With float32 and bfloat16, gradients are made in the forward. With float16 they wait for the backward: the
    factor of a loss scaler must be in them before they are rounded.
    """
    _check_reduction(reduction)
    hidden, labels = _rows(hidden.reshape(-1, hidden.shape[-1])), labels.reshape(-1)
    options = (ignore_index, softcap, smoothing, chunk_rows)
    trains = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if not trains or reduction == "none" or hidden.dtype == torch.float16:
        losses = _LinearCrossEntropy.apply(hidden, weight, bias, labels, options)
        return _reduce(losses, labels, reduction, num_items, ignore_index)
    scale = (torch.ones((), device=hidden.device) if reduction == "sum"
             else _scale(labels, num_items, ignore_index))
    return _TrainedLinearCrossEntropy.apply(hidden, weight, bias, labels, scale, options)


def _shifted(labels, ignore_index):
    """The label of a position is the token after it; the last position has none."""
    return nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]


class ForCausalLMLoss(nn.Module):
    """transformers' loss of causal language models; of hidden states where `logits` is None."""

    can_torch_compile = True
    has_backward = True

    @staticmethod
    def embed_beside(ids: torch.Tensor, weight: torch.Tensor, padding_idx: Optional[int]):
        """Returns the weight's rows and the weight, for a loss whose head has it too and that alone uses what is
        returned: the gradient that comes back for it is written to."""
        return _EmbeddingBeside.apply(ids, weight, -1 if padding_idx is None else padding_idx)

    def forward(self, logits, labels, vocab_size=None, num_items_in_batch=None, ignore_index=-100,
                shift_labels=None, hidden_states=None, lm_head_weight=None, lm_head_bias=None,
                final_logit_softcapping=None, label_smoothing=0.0, **kwargs):
        if shift_labels is None:
            shift_labels = _shifted(labels, ignore_index)
        if logits is None:
            if hidden_states is None or lm_head_weight is None:
                raise ValueError("[loss] logits: expected logits, or hidden_states with lm_head_weight, got None")
            shift_labels = shift_labels.reshape(-1).to(hidden_states.device)
            return linear_cross_entropy(hidden_states, lm_head_weight, shift_labels, lm_head_bias, ignore_index,
                                        final_logit_softcapping or 0.0, label_smoothing,
                                        num_items=num_items_in_batch)
        vocab_size = logits.shape[-1] if vocab_size is None else vocab_size
        shift_labels = shift_labels.reshape(-1).to(logits.device)
        return cross_entropy(logits.reshape(-1, vocab_size), shift_labels, ignore_index,
                             smoothing=label_smoothing, num_items=num_items_in_batch)


__all__ = ["ForCausalLMLoss", "cross_entropy", "linear_cross_entropy"]
