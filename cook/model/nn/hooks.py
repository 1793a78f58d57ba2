"""Hooks that can all be removed: the session owns one `Hooks`, and no hook is registered elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Registers hooks, can silence them temporarily, and removes all of them in `close`."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._silenced = 0

    def __len__(self) -> int:
        return len(self._handles)

    def forward(self, module: nn.Module, hook: Callable[..., Any], *, named: bool = False) -> None:
        """Call `hook(module, inputs, output)` after each forward of `module`, unless silenced.

        Args:
            named: call `hook(module, inputs, named inputs, output)`.
        """
        self._handles.append(module.register_forward_hook(self._unless_silenced(hook), with_kwargs=named))

    def forward_pre(self, module: nn.Module, hook: Callable[..., Any], *, named: bool = False) -> None:
        """Call `hook(module, inputs)` before each forward of `module`, unless silenced.

        Args:
            named: call `hook(module, inputs, named inputs)`.
        """
        self._handles.append(module.register_forward_pre_hook(self._unless_silenced(hook), with_kwargs=named))

    def after_step(self, optimizer: Optimizer, hook: Callable[[], None]) -> None:
        """Call `hook()` after each step that `optimizer` actually takes; silencing does not apply."""
        self._handles.append(optimizer.register_step_post_hook(lambda *_: hook()))

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Silence all forward hooks in the context; calls may be nested."""
        self._silenced += 1
        try:
            yield
        finally:
            self._silenced -= 1

    def close(self) -> None:
        """Remove every hook."""
        while self._handles:
            self._handles.pop().remove()

    def _unless_silenced(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values: None if self._silenced else hook(*values)
