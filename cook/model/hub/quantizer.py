"""The transformers quantizer, registered by `import cook`, that loads reshaped and integer models.

transformers lets a registered quantizer change a model after its creation on the meta device and before
its weights are loaded. This one applies the Blueprint there. One parameter, the lock, is stored with an
extra leading axis: a process without cook fails on that shape instead of misreading integers as floats or
re-initialising unknown layers.

`cook._hook` registers it. transformers may be only partly imported at that time, so this module imports
no more of it at the top than the two base classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from cook.errors import CookError
from cook.model.edits.blueprint import Blueprint
from cook.model.hub import METHOD
from cook.model.hub.load_guard import NOTICE, guard_parameter, guarded_state, remove_guard, widen
from cook.model.nn import sharing, surgery
from cook.model.nn.embedding import FactorisedEmbedding, TransposedLinear
from cook.model.nn.integer import IntLinear


class CookConfig(QuantizationConfigMixin):
    """The `quantization_config` of a model: the Blueprint as a dict.

    Args:
        blueprint: a Blueprint, or the result of its `to_dict`.

    Raises:
        CookError: the value is not a valid Blueprint.
    """

    def __init__(self, blueprint: Blueprint | Mapping[str, Any] | None = None):
        self.quant_method = METHOD  # type: ignore[assignment]
        if not isinstance(blueprint, Blueprint):
            blueprint = Blueprint.from_dict(blueprint)
        self.blueprint = blueprint.to_dict()

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read the entry of a config.json; keys other than the Blueprint are ignored."""
        config = cls(config_dict.get("blueprint"))
        return (config, kwargs) if return_unused_kwargs else config


class CookQuantizer(HfQuantizer):
    """Applies the Blueprint when a model is loaded, and adds the lock when it is saved.

    `model.is_quantized` is True only while the model holds integers: a reshaped float model can be trained
    and cast like any other.
    """

    def __init__(self, quantization_config: CookConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.blueprint = Blueprint.from_dict(quantization_config.blueprint)
        self._integers: set[str] = set()
        self.integers = any(edit.op == "integer" for edit in self.blueprint.edits)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self.blueprint = self.blueprint.apply(model)
        _check_head(model)
        if ties := sharing.ties(model, self.blueprint.shared):
            model.all_tied_weights_keys = {**model.all_tied_weights_keys, **ties}
            model._adjust_bias = sharing.keep_bias
        if self.blueprint.lock is not None:
            if self.blueprint.lock in {*ties, *ties.values()}:
                raise CookError(f"the lock {self.blueprint.lock} is shared", where="blueprint")
            widen(model, self.blueprint.lock)
            model._keys_to_ignore_on_load_unexpected = {
                *(model._keys_to_ignore_on_load_unexpected or ()),
                NOTICE,
            }
        for name, module in model.named_modules():
            if isinstance(module, IntLinear):
                self._integers.add(f"{name}.weight")
                # Loaded and missing parameters are replaced by new ones, but offloaded parameters stay these,
                # and GPT-2 would draw their integers from a normal distribution.
                for parameter in module.parameters():
                    parameter._is_hf_initialized = True  # type: ignore[attr-defined]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        vars(model).pop("_adjust_bias", None)
        if self.blueprint.lock is not None:
            remove_guard(model, self.blueprint.lock)
        for name, module in model.named_modules():
            if isinstance(module, (IntLinear, FactorisedEmbedding)):
                _check_loaded(name, module)
            if isinstance(module, IntLinear):
                module.freeze()
        _check_shared(model, self.blueprint.shared)
        attach_quantizer(model, self.blueprint)
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Integers stay integers and scales stay float32: the dtype they have in the model.

        Raises:
            CookError: the file has integers where the model has floats, or the reverse.
        """
        kind = param.get_dtype() if hasattr(param, "get_dtype") else str(param.dtype)
        stored_float = "F" in kind or "float" in kind
        # A model that keeps some layers in float32 requests that for their integers too.
        integers = self._integers.intersection(getattr(converter, "target_patterns", None) or ())
        if dtype is not None and stored_float != (dtype.is_floating_point and not integers):
            names = ", ".join(getattr(converter, "source_patterns", [])) or "a weight"
            raise CookError(
                f"{names} is stored as {kind}, the blueprint needs {dtype}",
                where="blueprint",
                hint="the folder is damaged: get it again",
            )
        return dtype if stored_float else None

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What `save_pretrained` writes: the state with the lock's extra axis; updates the config."""
        from cook.model.edits.plain import current

        lock = self.blueprint.lock
        # The token embedding may have been resized since.
        self.blueprint = Blueprint(edits=current(model, self.blueprint).edits, lock=lock)
        self.quantization_config = CookConfig(self.blueprint)
        model.config.quantization_config = self.quantization_config
        if lock is None:
            return None, {}
        return guarded_state(model, lock), {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, IntLinear):
                surgery.replace(model, name, float_module(module, dtype or torch.float32))
        for name, of in self.blueprint.shared:
            sharing.share(model, name, of)
        return model

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Convert integers to floats and restore GPT-2's Conv1D; other edits stay in the Blueprint."""
        model = self._dequantize(model, dtype or model.dtype)
        attach_quantizer(model, self.blueprint.without("integer"))
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether `Trainer` may train the model.

        Raises:
            CookError: the model holds integers. Trainer calls this first, and its own error would not
                explain what to do.
        """
        if self.integers:
            raise CookError(
                "the model holds integers and cannot be trained",
                hint="model = model.dequantize() gives a float model that can; compress that one again",
            )
        return True


def attach_quantizer(model: Any, blueprint: Blueprint) -> Blueprint:
    """Attach `blueprint` to a model in memory, so that any `save_pretrained` writes a matching folder.

    Args:
        model: a PreTrainedModel, already edited according to `blueprint`.
        blueprint: in the names of `model`. One without edits makes the model plain again.

    Returns:
        The Blueprint with its lock: an untied parameter of the base model (`guard_parameter`), so that
        the base model and every class with a head have it.

    Raises:
        CookError: no parameter of the model can be the lock.
    """
    detach_quantizer(model)
    if not blueprint.edits:
        return Blueprint()
    sharing.declare(model, blueprint.shared)
    locked = Blueprint(edits=list(blueprint.edits), lock=guard_parameter(model))
    base = getattr(model, "base_model", model)
    for part in (base, model) if base is not model else (model,):
        quantizer = CookQuantizer(CookConfig(locked if part is model else locked.renamed(part, model)))
        sharing.declare(part, quantizer.blueprint.shared)
        part.hf_quantizer = quantizer
        part.quantization_method = METHOD
        part.is_quantized = quantizer.integers
        part.config.quantization_config = quantizer.quantization_config
        part.config._is_quantized = quantizer.integers
    return locked


def detach_quantizer(model: Any) -> None:
    """Remove the Blueprint of a model in memory."""
    for part in {id(part): part for part in (getattr(model, "base_model", model), model)}.values():
        for name in ("hf_quantizer", "quantization_method"):
            if name in vars(part):
                delattr(part, name)
        part.is_quantized = False
        part.config._is_quantized = False
        if hasattr(part.config, "quantization_config"):
            del part.config.quantization_config


def _check_head(model: Any) -> None:
    """Refuse a head that the saved model did not have and that is wider than its input."""
    base, saved_as = getattr(model, "base_model", model), model.config.architectures or []
    if base is model or type(model).__name__ in saved_as:
        return
    from cook.model.arch.anatomy import Anatomy
    from cook.model.arch.width import stream

    try:
        width = stream(Anatomy(base)).count
    except CookError:
        return  # a family whose width no pass changes
    size = getattr(model.config, "hidden_size", width)
    inside = {id(parameter) for parameter in base.parameters()}
    for name, parameter in model.named_parameters():
        if size != width and id(parameter) not in inside and size in parameter.shape:
            raise CookError(
                f"the model in this folder is {width} wide, and {name} of a {type(model).__name__} {size}",
                hint=f"load it as the {' or '.join(saved_as)} that it is, or by AutoModel and give it a head",
            )


def blueprint_of(model: nn.Module) -> Blueprint:
    """A copy of the Blueprint of a model in memory; empty for a plain model."""
    quantizer = getattr(model, "hf_quantizer", None)
    if not isinstance(quantizer, CookQuantizer):
        return Blueprint()
    return Blueprint(edits=list(quantizer.blueprint.edits), lock=quantizer.blueprint.lock)


def float_module(module: IntLinear, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The float layer that `module` replaced: nn.Linear, GPT-2's Conv1D, a head's factor."""
    plain = module.to_linear(dtype)
    if not module.conv1d:
        return plain
    if module.bias is None:  # a Conv1D always has one
        weight = nn.Parameter(plain.weight.detach().t().contiguous())
        return TransposedLinear(weight).train(module.training)
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        new = Conv1D(module.out_features, module.in_features)
    new.weight = nn.Parameter(plain.weight.detach().t().contiguous())
    new.bias = (
        plain.bias if plain.bias is not None else nn.Parameter(torch.zeros_like(module.scale, dtype=dtype))
    )
    return new.train(module.training)


def _check_shared(model: nn.Module, shared: Sequence[tuple[str, str]]) -> None:
    """Check that shared tensors stored twice are equal; otherwise they would not be tied."""
    for target, source in sharing.ties(model, shared).items():
        one, other = model.get_parameter(target), model.get_parameter(source)
        if one is not other and not one.is_meta and not other.is_meta:
            hint = "the folder is damaged: get it again"
            raise CookError(
                f"the folder holds two of {source}, also as {target}", where="blueprint", hint=hint
            )


def _check_loaded(name: str, module: nn.Module) -> None:
    """Check that integers and factors were in the folder; missing ones would be uninitialised or random."""
    hint = "the folder is damaged: get it again"
    for key, parameter in module.named_parameters():
        if not parameter.is_meta and not getattr(parameter, "_is_hf_initialized", False):
            raise CookError(f"the folder holds no {name}.{key}", where="blueprint", hint=hint)
    if isinstance(module, IntLinear) and module.weight.dtype is not torch.int8:
        found = f"{name}.weight is stored as {module.weight.dtype}, it must be int8"
        raise CookError(found, where="blueprint", hint=hint)
