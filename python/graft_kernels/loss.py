"""A causal model's loss from its hidden states: the head's logits of all tokens never exist at once.

transformers' forward multiplies with `lm_head` and hands the logits to `loss_function`. Here the same forward runs with
a stand-in for both: the head puts its product off, and the loss makes it chunk by chunk. Whether nothing but a soft cap
happens to the logits in between is tried on the model's class, with the model's settings. An output still has logits:
they are made when somebody reads them.

Where the head's weight is the embedding's, the loss takes it from there: the embedding then adds its gradient to the
head's, rows that were looked up alone, where autograd would make a second one of the weight's size and their sum.
"""

import contextlib
import functools
import inspect
import types
from typing import Callable, Optional

import torch
import torch.nn as nn

from . import positions
from .view import View

HEAD, LOSS = "lm_head", "loss_function"
STATE = "_graft_tied"   # of an embedding whose weight the head has too
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What transformers' ForCausalLMLoss reads; it swallows every other argument.
_LOSS_ARGUMENTS = ("num_items_in_batch", "ignore_index", "shift_labels")


class _Deferred:
    """Logits that were not made; a soft cap on the way to the loss leaves them so."""

    def __init__(self, hidden: torch.Tensor):
        self.hidden = hidden

    def __truediv__(self, other):
        return self

    __mul__ = __truediv__

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return args[0]


class _BaseOutput:
    """A base model's output of which only the last hidden state is there."""

    def __init__(self, hidden: torch.Tensor):
        self.last_hidden_state = hidden

    def __getattr__(self, name):
        return None

    def __getitem__(self, index):
        return (self.last_hidden_state,)[index]


def may_have_loss(model: nn.Module) -> bool:
    """Whether a module is a transformers model with a linear head and a loss over its logits."""
    if type(getattr(model, HEAD, None)) is not nn.Linear or not hasattr(type(model), LOSS):
        return False
    names = inspect.unwrap(type(model).forward).__code__.co_names
    return HEAD in names and LOSS in names and hasattr(model, "config") and hasattr(model, "base_model_prefix")


def refusal(model: nn.Module) -> str:
    """Returns why a model's loss stays its own, or nothing."""
    function = inspect.unwrap(getattr(model, LOSS))
    head = getattr(model, HEAD)
    if getattr(function, "__name__", "") != "ForCausalLMLoss" or not function.__module__.startswith("transformers."):
        return "its loss is not transformers' ForCausalLMLoss"
    if head._forward_hooks or head._forward_pre_hooks or "forward" in head.__dict__:
        return "hooks on its head would not be called"
    if softcap_of(model) is None:
        return "does more to its logits than a soft cap"
    return ""


def softcap_of(model: nn.Module) -> Optional[float]:
    """Returns the soft cap between a model's head and its loss, 0 where there is none; None where there is more."""
    cap = getattr(model.config, "final_logit_softcapping", None) or 0.0
    return cap if _passes_on(model, cap) else None


def _passes_on(model: nn.Module, cap: float) -> bool:
    """Runs the class's forward with a small head and sees what the loss is given."""
    generator = torch.Generator().manual_seed(7)
    seen = {}
    with torch.device("cpu"), torch.no_grad():
        hidden, labels = torch.randn(2, 5, 8, generator=generator), torch.zeros(2, 5, dtype=torch.long)
        head = nn.Linear(8, 12, bias=False)
        head.weight.copy_(torch.randn(12, 8, generator=generator) * 20)

        def run_head(x):
            seen["all"] = x.shape == hidden.shape and torch.equal(x, hidden)
            seen["made"] = head(x)
            return seen["made"]

        def take(logits, labels, vocab_size=None, **arguments):
            seen["taken"] = logits
            return logits.sum()

        view = View(model, **{HEAD: run_head, LOSS: take, model.base_model_prefix: lambda *_, **__: _BaseOutput(hidden)})
        try:
            inspect.unwrap(type(model).forward)(view, input_ids=labels, labels=labels)
        except Exception:  # a forward that needs more than its base model, head and loss is no such model
            return False
        if not seen.get("all") or "taken" not in seen:
            return False
        expected = cap * torch.tanh(seen["made"] / cap) if cap else seen["made"]
        return torch.allclose(seen["taken"], expected, rtol=1e-5, atol=1e-5)


def forward(model: nn.Module, layer: type) -> Callable:
    """Returns the forward that takes the class's place: with labels, while gradients are recorded in training, the
    output's logits wait until they are read; every other call is the class's own."""
    own, softcap = type(model).forward, softcap_of(model)
    _tie(model, layer)
    names = list(inspect.signature(own).parameters)[1:]
    loss, counted = layer(), positions.of(model)

    @functools.wraps(own)  # Trainer reads the signature
    def fused(self, *args, **kwargs):
        given = dict(zip(names, args), **kwargs)
        if given.get("labels") is None or not _trains(self):
            return own(self, *args, **kwargs)
        with _tied(self) as weight_of, counted(given):
            view = View(self, **{HEAD: _head_of(self), LOSS: functools.partial(_loss_of, self, loss, softcap, weight_of)})
            return _finish(own(view, *args, **kwargs), functools.partial(_logits_of, self, softcap))

    return types.MethodType(fused, model)


class _Tied:
    """What an embedding hands to the loss of the same call."""

    def __init__(self):
        self.is_awaited, self.weight = False, None


def _embedding_of(model: nn.Module) -> Optional[nn.Embedding]:
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # a model without
        return None
    return embedding if type(embedding) is nn.Embedding else None


def _tie(model: nn.Module, layer: type) -> None:
    """Makes a model's embedding hand its weight to the loss where the head has it too."""
    embedding = _embedding_of(model)
    if embedding is None or "forward" in embedding.__dict__:
        return
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return

    def embed(self, input):
        tied = getattr(self, STATE)
        if not tied.is_awaited or tied.weight is not None or not self.weight.requires_grad:
            return type(self).forward(self, input)
        rows, tied.weight = layer.embed_beside(input, self.weight, self.padding_idx)
        return rows

    setattr(embedding, STATE, _Tied())
    embedding.forward = types.MethodType(embed, embedding)
    embedding.__dict__["_graft_swapped"] = (STATE,)


@contextlib.contextmanager
def _tied(model: nn.Module):
    """While a loss is made: a function that returns the head's weight, the embedding's own where both are one."""
    embedding = _embedding_of(model)
    tied = getattr(embedding, STATE, None)
    if tied is None or embedding.weight is not model.lm_head.weight:
        yield lambda: model.lm_head.weight
        return
    tied.is_awaited = True
    try:
        yield lambda: model.lm_head.weight if tied.weight is None else tied.weight
    finally:
        tied.is_awaited, tied.weight = False, None


def _trains(model: nn.Module) -> bool:
    device = model.lm_head.weight.device.type
    return (model.training and torch.is_grad_enabled() and not torch.is_autocast_enabled(device)
            and not torch.compiler.is_compiling())


def _head_of(model: nn.Module) -> Callable:
    def head(hidden):
        weight = model.lm_head.weight
        usual = hidden.dtype == weight.dtype and hidden.dtype in _DTYPES and hidden.device == weight.device
        return _Deferred(hidden) if usual else model.lm_head(hidden)

    return head


def _loss_of(model: nn.Module, loss: nn.Module, softcap: float, weight_of: Callable, logits, labels, vocab_size=None,
             **arguments):
    if not isinstance(logits, _Deferred):
        return model.loss_function(logits, labels, vocab_size, **arguments)
    read = {name: arguments[name] for name in _LOSS_ARGUMENTS if name in arguments}
    return loss(None, labels, vocab_size, hidden_states=logits.hidden, lm_head_weight=weight_of(),
                lm_head_bias=model.lm_head.bias, final_logit_softcapping=softcap, **read)


def _logits_of(model: nn.Module, softcap: float, deferred: _Deferred) -> torch.Tensor:
    logits = model.lm_head(deferred.hidden)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _finish(output, make: Callable):
    """The output as its class has it, with logits that wait; in a tuple they are made at once."""
    if isinstance(output, tuple):
        return tuple(make(value) if isinstance(value, _Deferred) else value for value in output)
    values = dict(output.items())
    deferred = values.pop("logits", None)
    if not isinstance(deferred, _Deferred):
        return output
    late = _late_class(type(output))(**values)
    late.__dict__["_make_logits"] = functools.partial(make, deferred)
    return late


@functools.cache
def _late_class(output_class: type) -> type:
    class Late(output_class):
        @property
        def logits(self):
            make = self.__dict__.pop("_make_logits", None)
            if make is not None:
                self["logits"] = make()
            return self.__dict__.get("logits")

        @logits.setter
        def logits(self, value):
            self.__dict__.pop("_make_logits", None)
            self.__dict__["logits"] = value

        def __getitem__(self, key):
            return self.logits if key == "logits" else super().__getitem__(key)

    Late.__name__, Late.__qualname__ = output_class.__name__, output_class.__qualname__
    return Late
