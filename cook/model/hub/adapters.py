"""Detection of PEFT adapters in a model, because saving such a model writes the adapter alone."""

from __future__ import annotations

from collections.abc import Callable

from cook.errors import CookError


def refuse_adapters(
    model: object,
    error: Callable[[str, str], CookError] = lambda message, hint: CookError(message, hint=hint),
) -> None:
    """Refuse a model with injected adapters.

    `save_pretrained` of such a model writes the adapter without the model, so that the changes made by a
    pass would be lost. Classes are recognised by their module name, so that peft need not be installed.

    Args:
        model: a transformers model or a PeftModel.
        error: creates the error from a message and a hint.

    Raises:
        CookError: the model has adapters; the hint says how to merge them.
    """
    if type(model).__module__.startswith("peft."):
        message = f"found a {type(model).__name__}, whose adapters are not part of the model yet"
        raise error(message, "merge them first: model = model.merge_and_unload()")
    modules = getattr(model, "modules", None)
    loaded = bool(getattr(model, "_hf_peft_config_loaded", False))
    if modules is None or not (loaded or any(_is_adapter(type(each)) for each in modules())):
        return
    raise error(
        f"the {type(model).__name__} has adapters injected, and saving it would write them alone",
        "merge them first: model.save_pretrained(folder) writes the adapter, and"
        " peft.PeftModel.from_pretrained(base_model, folder).merge_and_unload() gives a plain model",
    )


def _is_adapter(kind: type) -> bool:
    return any(cls.__module__.startswith("peft.tuners") for cls in kind.__mro__)
