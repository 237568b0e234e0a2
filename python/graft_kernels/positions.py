"""Positions that a model counts itself are not looked at again and again.

In every forward without a mask and a cache transformers looks whether the positions are those of packed sequences: the
host waits for the device, which then has nothing to do until the host has caught up. A model that is given no positions
counts 0, 1, 2 and so on, so the answer is always the same: it is remembered for each shape."""

import contextlib
import contextvars
import functools
import inspect

import torch
import torch.nn as nn

_LOOK = "find_packed_sequence_indices"   # in transformers.masking_utils
_OURS = "_graft_remembers"
_NOT_GIVEN = ("position_ids", "attention_mask", "past_key_values", "cache_position")
# In a call whose positions the model counts: shapes and devices of positions that hold no packed sequences.
_known: contextvars.ContextVar = contextvars.ContextVar("graft_counted_positions", default=None)


def _remember() -> None:
    """Makes transformers' look one that remembers within `counted()`."""
    from transformers import masking_utils
    own = getattr(masking_utils, _LOOK, None)
    if own is None or hasattr(own, _OURS):
        return

    @functools.wraps(own)
    def look(position_ids):
        known = None if torch.compiler.is_compiling() else _known.get()
        if known is None:
            return own(position_ids)
        key = (tuple(position_ids.shape), position_ids.device)
        if key not in known:
            packed = own(position_ids)
            if packed is not None:
                return packed
            known.add(key)
        return None

    setattr(look, _OURS, True)
    setattr(masking_utils, _LOOK, look)


def of(model: nn.Module):
    """Returns a function that makes the context for a call of a causal model from the call's arguments by name."""
    base = getattr(model, model.base_model_prefix, None)
    if base is None or "arange" not in inspect.unwrap(type(base).forward).__code__.co_names:
        return lambda given: contextlib.nullcontext()
    _remember()
    known = set()

    def counted(given: dict):
        if any(given.get(name) is not None for name in _NOT_GIVEN):
            return contextlib.nullcontext()
        return _counted(known)

    return counted


@contextlib.contextmanager
def _counted(known: set):
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)
