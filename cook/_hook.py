"""Registers cook's quantizer when transformers loads, and not a moment before.

Importing transformers takes seconds, so `import cook` must not do it. A finder on `sys.meta_path`
waits for the one module that keeps the list of quantizers, lets it load as it would have, and enters
two names there. They import `cook.model.hub.quantizer` when a model asks for it: importing it earlier,
inside of somebody's import, could make two importing threads wait for each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from cook.model.hub import METHOD

AWAITED = "transformers.quantizers.auto"


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """Loads as `inner` does, leaves `inner` behind as the module's loader, and registers."""

    def __init__(self, inner: Loader):
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        _register(module)

    def __getattr__(self, name: str) -> object:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def install() -> None:
    """Register when transformers gets loaded, or now if it is. Calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if AWAITED in sys.modules:
        _register(import_module(AWAITED))


class Config:
    """Stands for `CookConfig` in transformers' list."""

    @staticmethod
    def from_dict(value: Any, **options: Any) -> Any:
        """What `CookConfig.from_dict` gives."""
        return import_module("cook.model.hub.quantizer").CookConfig.from_dict(value, **options)


def quantizer(config: Any, **options: Any) -> Any:
    """Stands for `CookQuantizer` in transformers' list."""
    return import_module("cook.model.hub.quantizer").CookQuantizer(config, **options)


def _register(module: Any) -> None:
    module.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = Config
    module.AUTO_QUANTIZER_MAPPING[METHOD] = quantizer
