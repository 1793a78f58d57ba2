"""cook makes a Hugging Face model smaller and faster from one recipe.

    import cook

    cook.run("recipe.yaml")                        # everything: train, compress, save, verify, report
    cook.apply(model, {"version": 1, "passes": [...]})     # a model in memory
    cook.attach(model, "recipe.yaml", total_steps=900, steps_per_epoch=300)    # your own loop

`import cook` teaches transformers to load what cook has saved, and loads neither torch nor transformers
itself: the public names below are looked up when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cook import _hook
from cook.version import __version__

if TYPE_CHECKING:
    from cook.api import apply, attach
    from cook.errors import CookError
    from cook.pipeline import run  # type: ignore[no-redef]
    from cook.recipe import Recipe, load_recipe
    from cook.report import Report

__all__ = ["CookError", "Recipe", "Report", "__version__", "apply", "attach", "load_recipe", "run"]

_HOMES = {
    "CookError": "cook.errors",
    "Recipe": "cook.recipe",
    "Report": "cook.report",
    "apply": "cook.api",
    "attach": "cook.api",
    "load_recipe": "cook.recipe",
    "run": "cook.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cook' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_hook.install()
