"""kernelize and unkernelize: our layers in a model, with or without the library `kernels`."""

import enum
import functools
import types
from typing import Optional, Union

import torch
import torch.nn as nn

from . import hub, loss, projections, residual, slots, variants
from .errors import GraftError
from .table import Report, Row, record


class Mode(enum.Flag):
    """What a model is going to do; the names are those of `kernels.Mode`."""

    INFERENCE = enum.auto()
    TRAINING = enum.auto()
    TORCH_COMPILE = enum.auto()


def to_mode(mode: Union[None, str, "Mode", enum.Flag], model: nn.Module) -> Mode:
    """Accepts a Mode of ours or of `kernels`, names joined by |, or None for what the model is set to."""
    if mode is None:
        return Mode.TRAINING if model.training else Mode.INFERENCE
    if isinstance(mode, str):
        names = [name.strip().upper() for name in mode.split("|")]
    else:
        names = [member.name for member in type(mode) if member in mode]
    unknown = sorted(set(names) - set(Mode.__members__))
    if unknown or not names:
        raise GraftError("python.kernelize", f"mode: expected names of {', '.join(Mode.__members__)}, got {mode!r}")
    result = Mode(0)
    for name in names:
        result |= Mode[name]
    if (Mode.INFERENCE in result) == (Mode.TRAINING in result):
        raise GraftError("python.kernelize", f"mode: expected one of INFERENCE and TRAINING, got {mode!r}")
    return result


def device_of(model: nn.Module) -> str:
    """Returns cpu or cuda: where the model's first parameter lies."""
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device.type
    if device not in ("cpu", "cuda") or (device == "cuda" and torch.version.hip):
        raise GraftError("python.kernelize", f"device: expected cpu or cuda, got {device}",
                         "the packages have kernels for these two")
    return device


def kernelize(model: nn.Module, mode: Union[None, str, Mode, enum.Flag] = None,
              keep_logits: bool = False) -> nn.Module:
    """Puts layers of the embedded hub where they compute what the model's own layers compute.

    Works in place and returns the model; needs no `kernels`, so it serves every transformers. A layer whose numeric
    variant is not ours stays as it is; `report(model)` says which and why. Rotary embedding is exchanged for this
    model alone. In training, a causal model that is given labels makes its loss without making all logits at once; the
    output makes them when they are read. keep_logits=True leaves the loss as it is. `unkernelize(model)` restores the model's own
    layers. Throws GraftError where the embedded hub, the device or the mode has nothing for the model."""
    wanted, device = to_mode(mode, model), device_of(model)
    unkernelize(model)
    rows = []
    for slot in slots.find(model):
        if _only_trains(slot) and (Mode.TRAINING not in wanted or (keep_logits and slot.package == "loss")):
            continue
        layer = hub.layer_class(slot.package, slot.kernel, device)
        refusal = slot.refusal or _lacks(layer, wanted) or _loses(slot, wanted, device) or hooked(slot)
        if not refusal:
            swap(slot, layer)
        rows.append(Row(slot, hub.variant_dir(slot.package, device).name, refusal))
    record(model, Report(rows, device, wanted))
    return model


def _only_trains(slot: slots.Slot) -> bool:
    return slot.package == "loss" or slot.layer in (slots.RESIDUAL_LAYER, slots.PROJECTIONS_LAYER)


def _lacks(layer: type, mode: Mode) -> str:
    if Mode.TRAINING in mode and not layer.has_backward:
        return "has no backward"
    if Mode.TORCH_COMPILE in mode and not layer.can_torch_compile:
        return "breaks the graph of torch.compile"
    return ""


def _loses(slot: slots.Slot, mode: Mode, device: str) -> str:
    """What is right and would still be a loss."""
    if _only_trains(slot) and Mode.TORCH_COMPILE in mode:
        return "torch.compile makes its own of it"
    if slot.package == "mlp" and Mode.TRAINING in mode and device == "cpu":
        return "in training on the CPU, separate products and their gradients are a tenth faster"
    return ""


def hooked(slot: slots.Slot) -> str:
    return "another library rebound its forward" if "forward" in slot.module.__dict__ else ""


def swap(slot: slots.Slot, layer: type, trains: bool = True) -> None:
    """Puts a layer into its place; one that does not train leaves training to the module's own."""
    module = slot.module
    if slot.layer == slots.PROJECTIONS_LAYER:
        return projections.swap(module, layer)   # the module itself may have a slot of its own
    if slot.package == "rotary":
        module.forward = types.MethodType(_with_rotary(module, slot, layer), module)
    elif slot.package == "loss":
        module.forward = loss.forward(module, layer)
    elif slot.layer == slots.RESIDUAL_LAYER:
        module.forward = residual.forward(module, layer)
    else:
        for name, value in slot.attributes.items():
            setattr(module, name, value)
        module.forward = types.MethodType(layer.forward if trains else _untrained(layer.forward), module)
    module.__dict__["_graft_swapped"] = tuple(slot.attributes)


def _untrained(forward: types.FunctionType) -> types.FunctionType:
    @functools.wraps(forward)
    def run(self, *args, **kwargs):
        return type(self).forward(self, *args, **kwargs) if self.training else forward(self, *args, **kwargs)

    return run


def _with_rotary(module: nn.Module, slot: slots.Slot, layer: type) -> types.FunctionType:
    """The module's forward, reading a rotary function of our own: the modeling file and other models keep theirs."""
    own = slots.original_forward(module)
    names = {**own.__globals__, slots.ROTARY_FUNCTION: _rotary_callable(slot, layer)}
    # torch.compile reads globals through the module that __name__ names, where the function is the file's own.
    del names["__name__"]
    forward = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return forward


def _rotary_callable(slot: slots.Slot, layer: type):
    place = layer()
    for name, value in slot.attributes.items():
        setattr(place, name, value)
    reference = variants._reference(slot.function)
    signature = variants.positional_signature(slot.function)

    if "position_ids" in signature:  # transformers before 5.1; the argument has had no use for long
        def rotate(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
            return apply(q, k, cos, sin, unsqueeze_dim)
    else:
        def rotate(q, k, cos, sin, unsqueeze_dim=1):
            return apply(q, k, cos, sin, unsqueeze_dim)

    def apply(q, k, cos, sin, unsqueeze_dim):
        width = cos.shape[-1] * (2 if slot.attributes["graft_half_tables"] else 1)
        if q.dtype == torch.float64 or width > q.shape[-1]:
            return reference(q, k, cos, sin)
        return place(q, k, cos, sin, unsqueeze_dim)

    return rotate


def unkernelize(model: nn.Module) -> nn.Module:
    """Restores the model's own layers bit for bit, whether kernelize or `kernels` put ours in."""
    for module in model.modules():
        for place in (module, *getattr(module, "_kernel_funcs", {}).values()):
            restore(place)
    if getattr(model, "_use_kernels", False) and hasattr(model, "kernel_config"):
        model._use_kernels = False
    record(model, None)
    return model


def restore(module: nn.Module) -> None:
    forward = module.__dict__.get("forward")
    if "_graft_swapped" in module.__dict__:
        names = (*module.__dict__["_graft_swapped"], "_graft_swapped", "forward")
    elif forward is not None and is_ours(forward):
        names = ("graft_variant", "graft_gate_first", "graft_groups", "graft_act", "graft_inverse",
                 "graft_half_tables", "graft_cast_back", "forward")
    else:
        return
    for name in names:
        module.__dict__.pop(name, None)


def is_ours(forward) -> bool:
    """Whether a bound forward is a layer class of one of our packages."""
    function = getattr(forward, "__func__", None)
    source = getattr(getattr(function, "__code__", None), "co_filename", "")
    return "/" + hub.ORGANISATION + "/" in source and source.endswith("layers.py")
