"""Places in a model that a layer of ours can take, found without the library `kernels`.

A place is found by what its class computes, not by a decorator: transformers' decorators are empty where it refuses
the installed `kernels`, and they name RMSNorm what rounds in three different ways.
"""

import dataclasses
import inspect
import types
from typing import Callable, Iterator, Optional

import torch
import torch.nn as nn

from . import loss, projections, residual, variants

ACTIVATIONS = {
    "SiLUActivation": "SiLU", "GELUActivation": "GeLU", "GELUTanh": "GeluTanh", "PytorchGELUTanh": "GeluTanh",
    "NewGELUActivation": "NewGELU", "FastGELUActivation": "FastGELU", "QuickGELUActivation": "QuickGELU"}
MLP_LAYERS = {"silu": "SwiGLUMLP", "gelu_tanh": "GeGLUMLP", "gelu": "MLP"}
RESIDUAL_LAYER = "residual sums"   # of a decoder layer, joined to its norms
PROJECTIONS_LAYER = "joined projections"   # of attention, whose gradients are one of their input
ROTARY_FUNCTION = "apply_rotary_pos_emb"


@dataclasses.dataclass
class Slot:
    """One place: the module, and what takes it or why nothing does."""

    path: str
    module: nn.Module
    layer: str                    # the name that transformers' mapping knows: RMSNorm, SiLU, rotary_pos_emb ...
    package: str                  # rms-norm, activation, rotary, mlp, loss, linear
    kernel: str                   # the class in the package's layers.py
    variant: str = ""             # numeric variant in words
    attributes: dict = dataclasses.field(default_factory=dict)   # what the class reads from the adopting module
    refusal: str = ""             # why the reference stays
    function: Optional[Callable] = None   # rotary: the modeling file's function


def find(model: nn.Module) -> Iterator[Slot]:
    """Yields every slot of a model, refused ones included."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind in ACTIVATIONS or type(module) is nn.SiLU:
            name = ACTIVATIONS.get(kind, "SiLU")
            inplace = getattr(module, "inplace", False)
            yield Slot(path, module, name, "activation", name,
                       refusal="works in place" if inplace else "")
        elif "RMSNorm" in kind and _is_plain_norm(module):
            yield _norm_slot(path, module)
        elif "RMSNorm" in kind and _is_gated_norm(module):
            yield _gated_norm_slot(path, module)
        elif kind.endswith("MLP") and _is_gated_mlp(module):
            yield _mlp_slot(path, module)
        elif type(module) is nn.LayerNorm:
            yield Slot(path, module, "LayerNorm", "rms-norm", "LayerNorm",
                       refusal="" if len(module.normalized_shape) == 1 else "norms more than the last dimension")
        elif loss.may_have_loss(module):
            yield _loss_slot(path, module)
        elif residual.may_join(module):
            yield Slot(path, module, RESIDUAL_LAYER, "rms-norm", "AddRMSNorm")
        elif projections.may_join(module):
            yield Slot(path, module, PROJECTIONS_LAYER, "linear", "JoinedLinears", refusal=projections.refusal(module))
        if rotary_function(module) is not None:
            yield _rotary_slot(path, module)


def _is_norm(module: nn.Module, *parameters: str) -> bool:
    weight = getattr(module, "weight", None)
    return (isinstance(weight, torch.Tensor) and weight.dim() == 1
            and len(inspect.signature(type(module).forward).parameters) == len(parameters) + 2
            and set(parameters) <= set(inspect.signature(type(module).forward).parameters))


def _is_plain_norm(module: nn.Module) -> bool:
    return _is_norm(module)


def _is_gated_norm(module: nn.Module) -> bool:
    return _is_norm(module, "gate")


def _gated_norm_slot(path: str, module: nn.Module) -> Slot:
    slot = Slot(path, module, "RMSNormGated", "rms-norm", "RMSNormGated")
    form = variants.gated_norm_form(type(module), module)
    if form is None:
        slot.refusal = "computes none of the package's gated norms"
        return slot
    slot.variant, slot.attributes = variants.gated_norm_name(form), form
    return slot


def _norm_slot(path: str, module: nn.Module) -> Slot:
    slot = Slot(path, module, "RMSNorm", "rms-norm", "RMSNorm")
    variant = variants.norm_variant(type(module), module)
    if variant is None:
        slot.refusal = "rounds as none of the package's variants does"
        return slot
    slot.variant = variants.NORM_NAMES[variant]
    slot.attributes = {"graft_variant": variant}
    return slot


def _is_gated_mlp(module: nn.Module) -> bool:
    parts = [getattr(module, name, None) for name in variants.MLP_PARTS]
    parameters = inspect.signature(type(module).forward).parameters
    return all(type(part) is nn.Linear for part in parts) and len(parameters) == 2 and hasattr(module, "act_fn")


def _mlp_slot(path: str, module: nn.Module) -> Slot:
    act = variants.mlp_activation(type(module), module)
    slot = Slot(path, module, "MLP", "mlp", MLP_LAYERS.get(act, "SwiGLUMLP"), variant=act or "")
    weight = module.gate_proj.weight
    if act not in MLP_LAYERS:
        slot.refusal = "computes none of the package's MLPs"
    elif any(getattr(module, name)._forward_hooks or getattr(module, name)._forward_pre_hooks
             for name in (*variants.MLP_PARTS, "act_fn")):
        slot.refusal = "hooks on its parts would not be called"
    elif weight.device.type == "cpu" and weight.dtype != torch.float32:
        slot.refusal = "16-bit products of many rows on the CPU are torch's own"
    elif slot.kernel == "MLP":
        slot.attributes = {"graft_act": act}
    return slot


def _loss_slot(path: str, module: nn.Module) -> Slot:
    slot = Slot(path, module, "ForCausalLMLoss", "loss", "ForCausalLMLoss", refusal=loss.refusal(module))
    softcap = 0 if slot.refusal else loss.softcap_of(module)
    slot.variant = f"soft cap {softcap:g}" if softcap else ""
    return slot


def original_forward(module: nn.Module) -> Callable:
    """Returns the forward that the module's class defines, without what decorators wrapped around it."""
    return inspect.unwrap(type(module).forward)


def rotary_function(module: nn.Module) -> Optional[Callable]:
    """Returns the modeling file's rotary function where the module's forward calls it by its global name."""
    forward = original_forward(module)
    if not isinstance(forward, types.FunctionType) or ROTARY_FUNCTION not in forward.__code__.co_names:
        return None
    return forward.__globals__.get(ROTARY_FUNCTION)


def _rotary_slot(path: str, module: nn.Module) -> Slot:
    function = rotary_function(module)
    slot = Slot(path, module, "rotary_pos_emb", "rotary", "apply_rotary_transformers", function=function)
    form = variants.rotary_form(function)
    if form is None:
        slot.refusal = "rotates as the package does not"
    elif type(module).forward is not original_forward(module):
        slot.refusal = "its forward is wrapped, so the function cannot be exchanged for this model alone"
    elif original_forward(module).__closure__:
        slot.refusal = "its forward holds a closure, so the function cannot be exchanged for this model alone"
    else:
        slot.attributes = form
    slot.variant = variants.rotary_name(form) if form else ""
    return slot
