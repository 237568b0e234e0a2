"""Our packages through transformers' own `use_kernels=True` and the library `kernels`."""

from . import hub, slots, swap, variants
from .errors import GraftError
from .table import Report, Row, record


def kernel_config(inherit_mapping: bool = False, keep_logits: bool = False):
    """Returns a KernelConfig for `from_pretrained(..., use_kernels=True, kernel_config=...)`.

    Every layer that a package serves comes from the embedded hub through `kernels`' own loader, on the CPU and on
    CUDA, in every mode; places that transformers does not decorate (MLPs, Gemma's norms, Phi-3's rotary, the loss) are
    exchanged beside its own mapping. inherit_mapping=True leaves the other layers to transformers' default mapping,
    which asks the Hub; keep_logits=True the loss as it is (see kernelize). One object serves any number of models. Throws GraftError where transformers has no KernelConfig or
    refuses the installed `kernels`; `kernelize` works there."""
    try:
        from transformers.integrations.hub_kernels import is_kernels_available
        from transformers.utils.kernel_config import KernelConfig
    except ImportError as error:
        raise GraftError("python.kernel_config", f"transformers with KernelConfig: {error}",
                         "graft_kernels.kernelize(model) needs neither") from error
    if not is_kernels_available():
        raise GraftError("python.kernel_config", "kernels: expected a version that this transformers accepts",
                         "graft_kernels.kernelize(model) works without `kernels`")
    return _config_class(KernelConfig)(inherit_mapping, keep_logits)


def _config_class(base: type) -> type:
    class GraftKernelConfig(base):
        """Names no repository by itself: what a layer computes is known when the model stands."""

        def __init__(self, inherit_mapping, keep_logits):
            super().__init__({}, inherit_mapping=inherit_mapping)
            self.keep_logits = keep_logits

        def sanitize_kernel_mapping(self, model):
            self.store_registered_layer_names(model)

        def create_compatible_mapping(self, model, compile=False):
            own = GraftKernelConfig(self.inherit_mapping, self.keep_logits)
            own.kernel_mapping = mapping_for(model, self.keep_logits)
            model.kernel_config = own  # one for each model: this object stays as it was

    return GraftKernelConfig


def mapping_for(model, keep_logits: bool = False) -> dict:
    """Returns the mapping that `kernels.use_kernel_mapping` takes, for the decorated layers of one model, and exchanges
    the places that are not decorated.

    Modules learn on the way which numeric variant they are (graft_variant and its like); what is refused is not in
    the mapping, or, where others of its name are served, keeps its own forward."""
    device, mapping, rows, refused = swap.device_of(model), {}, [], set()
    for slot in list(slots.find(model)):
        is_decorated = _find_decorated(slot)
        if slot.package == "loss" and keep_logits:
            continue
        if not is_decorated:
            slot.refusal = slot.refusal or _exchange(slot, device)
        elif slot.refusal:
            refused.add(slot.layer)
        else:
            for name, value in slot.attributes.items():
                setattr(slot.module, name, value)
            mapping[slot.layer] = {device: _modes(_repository(slot, device))}
        build = hub.variant_dir(slot.package, _backend(slot.package, device)).name
        rows.append(Row(slot, build, slot.refusal))
    if refused & set(mapping):
        raise GraftError("python.kernel_config", f"layer names {sorted(refused & set(mapping))}: expected one numeric "
                         "variant of ours for all their places, got some that are refused",
                         "graft_kernels.kernelize(model) decides place by place")
    record(model, Report(rows, device, swap.to_mode(None, model)))
    return mapping


def _find_decorated(slot: slots.Slot) -> bool:
    """Whether `kernels.kernelize` will visit a slot; names the module that it will rebind."""
    if slot.package != "rotary":
        is_decorated = hasattr(type(slot.module), "kernel_layer_name")
        slot.layer = type(slot.module).kernel_layer_name if is_decorated else slot.layer
        return is_decorated
    function = next((place for place in getattr(slot.module, "_kernel_funcs", {}).values()
                     if place is slot.function), None)
    if function is None:
        return False
    form = variants.rotary_form(function)
    slot.module, slot.layer = function, type(function).kernel_layer_name
    slot.attributes = form or {}
    slot.refusal = "" if form else "rotates as the package does not"
    return True


def _exchange(slot: slots.Slot, device: str) -> str:
    """Puts our layer into a place that is not decorated, for inference and training; returns why not, or nothing."""
    swap.restore(slot.module)
    refusal = swap.hooked(slot)
    if not refusal:
        swap.swap(slot, _repository(slot, device).load(), trains=slot.package != "mlp" or device != "cpu")
    return refusal


def _backend(package: str, device: str) -> str:
    """`kernels` chooses by the build of torch: with CUDA in torch the CUDA variant serves the CPU as well."""
    try:
        hub.variant_dir(package, "cuda")
    except GraftError:
        return "cpu"
    return "cuda"


def _repository(slot: slots.Slot, device: str):
    from kernels import LocalLayerRepository, get_local_kernel

    class Repository(LocalLayerRepository):
        """Names the backend where torch has CUDA and the hub was built without."""

        def load(self):
            kernel = get_local_kernel(self._repo_path, backend=_backend(slot.package, device))
            return getattr(kernel.layers, self.layer_name)

    return Repository(hub.package_dir(slot.package), layer_name=slot.kernel)


def _modes(repository) -> dict:
    from kernels import Mode
    return {Mode.INFERENCE | Mode.TORCH_COMPILE: repository, Mode.TRAINING | Mode.TORCH_COMPILE: repository}
