"""Numeric variants, found by trying: a class runs once on small seeded inputs, and the result tells what it computes.

The trial is made on the CPU, in bfloat16 where roundings show, and kept for modules of that class with the same
settings: what a class computes may depend on them.
"""

import inspect
import weakref
from typing import Callable, Optional

import torch
import torch.nn as nn

NORM_NAMES = {0: "cast_before_weight", 1: "cast_after_weight", 2: "float_weight", 3: "zero_centered"}
_norms: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()
_gated_norms: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()
_rotaries: dict = {}


def _norm_formula(x: torch.Tensor, weight: torch.Tensor, eps: float, variant: int) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if variant == 0:
        return weight * wide.to(x.dtype)
    if variant == 3:
        return (wide * (1.0 + weight.float())).to(x.dtype)
    return (weight.float() * wide).to(x.dtype)


def _settings(module: nn.Module) -> tuple:
    """The numbers, words and flags that a module was made with."""
    return tuple(sorted((key, value) for key, value in module.__dict__.items()
                        if isinstance(value, (bool, int, float, str)) and key != "training"))


def norm_variant(cls: type, module: nn.Module) -> Optional[int]:
    """Returns which of the package's variants an RMSNorm class computes bit for bit, or None."""
    variants, settings = _norms.setdefault(cls, {}), _settings(module)
    if settings not in variants:
        variants[settings] = _try_norm(cls, module)
    return variants[settings]


def _try_norm(cls: type, module: nn.Module) -> Optional[int]:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float):
        return None
    generator = torch.Generator().manual_seed(7)
    width = module.weight.shape[0]
    with torch.device("cpu"), torch.no_grad():
        weight = torch.randn(width, generator=generator).to(torch.bfloat16)
        x = (3 * torch.randn(64, width, generator=generator)).to(torch.bfloat16)
        stand_in = object.__new__(cls)
        stand_in.__dict__.update({key: value for key, value in module.__dict__.items() if key != "forward"})
        stand_in.__dict__["_parameters"] = {"weight": nn.Parameter(weight, requires_grad=False)}
        try:
            actual = cls.forward(stand_in, x)
        except Exception:  # a class that needs more than a weight and eps is no such norm
            return None
        for variant in (0, 1, 3):  # 1 and 2 are one formula where weight and input share a dtype
            if torch.equal(actual, _norm_formula(x, weight, eps, variant)):
                return variant
    return None


def gated_norm_form(cls: type, module: nn.Module) -> Optional[dict]:
    """Returns the attributes under which the package's RMSNormGated computes what a gated norm computes bit for bit,
    or None."""
    forms, settings = _gated_norms.setdefault(cls, {}), _settings(module)
    if settings not in forms:
        forms[settings] = _try_gated_norm(cls, module)
    return forms[settings]


def _gated_formula(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, form: dict) -> torch.Tensor:
    gate = torch.nn.functional.silu(gate.float()) if form["graft_act"] == "silu" else torch.sigmoid(gate.float())
    wide = x.float() * gate if form["graft_gate_first"] else x.float()
    groups = wide.unflatten(-1, (form["graft_groups"], -1))
    wide = (groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2)
    if form["graft_variant"] == 0:
        wide = weight * wide.to(x.dtype)
    elif form["graft_variant"] == 3:
        wide = wide * (1.0 + weight.float())
    else:
        wide = weight.float() * wide
    return (wide if form["graft_gate_first"] else wide * gate).to(x.dtype)


def _try_gated_norm(cls: type, module: nn.Module) -> Optional[dict]:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float):
        return None
    width = module.weight.shape[0]
    groups = getattr(module, "n_groups", width // getattr(module, "group_size", width))
    generator = torch.Generator().manual_seed(7)
    with torch.device("cpu"), torch.no_grad():
        weight = torch.randn(width, generator=generator).to(torch.bfloat16)
        x, gate = ((3 * torch.randn(4, 8, width, generator=generator)).to(torch.bfloat16) for _ in range(2))
        stand_in = object.__new__(cls)
        stand_in.__dict__.update({key: value for key, value in module.__dict__.items() if key != "forward"})
        stand_in.__dict__["_parameters"] = {"weight": nn.Parameter(weight, requires_grad=False)}
        try:
            actual = cls.forward(stand_in, x, gate)
        except Exception:  # a class that needs more than a weight, eps and a gate is no such norm
            return None
        for variant in (0, 2, 3):
            for gate_first in (False, True):
                for act in ("silu", "sigmoid"):
                    form = {"graft_variant": variant, "graft_gate_first": gate_first, "graft_groups": groups,
                            "graft_act": act}
                    if torch.equal(actual, _gated_formula(x, gate, weight, eps, form)):
                        return form
    return None


def gated_norm_name(form: dict) -> str:
    """Names a form in words, for reports."""
    order = f"{form['graft_act']} before the norm" if form["graft_gate_first"] else f"{form['graft_act']} after it"
    groups = f", {form['graft_groups']} groups" if form["graft_groups"] > 1 else ""
    return f"{NORM_NAMES[form['graft_variant']]}, {order}{groups}"


MLP_PARTS = ("gate_proj", "up_proj", "down_proj")
_MLP_ACTIVATIONS = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
                    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}


def mlp_activation(cls: type, module: nn.Module) -> Optional[str]:
    """Returns the activation with which the package's MLP computes what a class computes, or None. Tried for every
    module, with small projections: an activation may have weights of its own."""
    generator = torch.Generator().manual_seed(7)
    with torch.device("cpu"), torch.no_grad():
        gate, up, down = parts = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        for part in parts:
            part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
            part.bias.copy_(torch.randn(part.bias.shape, generator=generator))
        x = torch.randn(5, 8, generator=generator)
        stand_in = object.__new__(cls)
        stand_in.__dict__.update({key: value for key, value in module.__dict__.items() if key != "forward"})
        stand_in.__dict__["_modules"] = {**module._modules, **dict(zip(MLP_PARTS, parts))}
        try:
            actual = cls.forward(stand_in, x)
        except Exception:  # a class that needs more than its projections is no such MLP
            return None
        for name, function in _MLP_ACTIVATIONS.items():
            # The activation may be one of our layers already: equal to the last bits alone.
            if actual.shape == x.shape and torch.allclose(actual, down(function(gate(x)) * up(x)), rtol=1e-5,
                                                          atol=1e-5):
                return name
    return None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotary_form(function: Callable) -> Optional[dict]:
    """Returns the attributes under which the package's layer computes what `function` computes, or None."""
    key = id(function)
    if key not in _rotaries:
        _rotaries[key] = (function, _try_rotary(function))  # held, so that the id stays its own
    return _rotaries[key][1]


def _reference(function: Callable) -> Callable:
    """A function module that `kernels` swapped computes its class's forward: that is the reference."""
    if isinstance(function, nn.Module):
        return lambda *args: type(function).forward(function, *args)
    return function


def _call(function: Callable, *args) -> Optional[tuple]:
    try:
        result = _reference(function)(*args)
    except Exception:  # other tables, other arguments: not this form
        return None
    return result if isinstance(result, tuple) and len(result) == 2 else None


def _try_rotary(function: Callable) -> Optional[dict]:
    generator = torch.Generator().manual_seed(7)
    with torch.device("cpu"), torch.no_grad():
        query, key = (torch.randn(2, heads, 5, 16, generator=generator) for heads in (4, 2))
        angles = torch.rand(2, 5, 8, generator=generator)
        for half_tables in (False, True):
            table = angles if half_tables else torch.cat((angles, angles), dim=-1)
            cos, sin = table.cos(), table.sin()
            actual = _call(function, query, key, cos, sin)
            if actual is None:
                continue
            full = [torch.cat((t, t), -1) if half_tables else t for t in (cos, sin)]
            full = [t.unsqueeze(1) for t in full]
            for inverse in (False, True):
                signed = (full[0], -full[1] if inverse else full[1])
                if all(torch.allclose(own, _rotate(x, *signed), atol=1e-5)
                       for own, x in zip(actual, (query, key))):
                    return {"graft_inverse": inverse, "graft_half_tables": half_tables,
                            "graft_cast_back": _casts_back(function, query, key, cos, sin)}
    return None


def _casts_back(function: Callable, query, key, cos, sin) -> bool:
    result = _call(function, query.bfloat16(), key.bfloat16(), cos, sin)
    return result is not None and result[0].dtype == torch.bfloat16


def rotary_name(form: dict) -> str:
    """Names a form in words, for reports."""
    words = ["half_split"]
    words += ["opposite sign"] if form["graft_inverse"] else []
    words += ["half tables"] if form["graft_half_tables"] else []
    return ", ".join(words)


def positional_signature(function: Callable) -> list:
    """Returns the names of a rotary function's parameters."""
    target = type(function).forward if isinstance(function, nn.Module) else function
    return [name for name in inspect.signature(target).parameters if name != "self"]
