"""BMCook's JSON configs as recipes: their distillation, pruning and quantisation parts.

What a key means is what BMCook (github.com/OpenBMB/BMCook) computes for it, which its documentation
does not always say. A key that is switched off means nothing; one that is on and has no counterpart
here is an error. Such a config names neither model, data nor training: those come with `--set`, from
Python, or are added to the converted recipe.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cook.errors import CookError, nearest
from cook.recipe.text.nodes import dump
from cook.recipe.text.parse import Document, Problems, raise_all
from cook.recipe.text.place import Marks, Path, mark_of, where

KEYS: dict[str, tuple[str, ...]] = {
    "distillation": (
        *("ce_scale", "ce_temp", "mse_hidn_scale", "mse_hidn_module", "mse_hidn_proj"),
        *("mse_att_scale", "mse_att_module"),
    ),
    "pruning": ("is_pruning", "pruning_mask_path", "pruned_module", "mask_method", "sprune"),
    "quantization": ("is_quant", "quantized_module"),
    "MoEfication": ("is_moefy", "first_FFN_module"),
}
"""The sections of a config, and the keys that BMCook knows in each."""

_PAIR = re.compile(r"\[(pre|post)\]([^:\[\]]+):\[(pre|post)\]([^:\[\]]+)")
_SIDE = {"pre": "in", "post": "out"}


@dataclass
class Converted:
    """A recipe made from a config.

    Attributes:
        value: `version`, `passes`, and `teacher` where a pass learns from one.
        origins: the path in the config of what stands at a path in `value`.
        notes: what differs from BMCook, or was left out, a sentence each.
    """

    value: dict[str, Any]
    origins: dict[Path, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_bmcook(value: Any) -> bool:
    """Whether a value is a BMCook config: one of its sections is there, and nothing that makes a recipe."""
    keys = set(value) if isinstance(value, Mapping) else set()
    return bool(keys & set(KEYS)) and not keys & {"version", "passes"}


def convert(config: Mapping[str, Any], marks: Marks | None = None, name: str = "<dict>") -> Converted:
    """The recipe that asks for what a BMCook config asks for.

    `teacher` is `self` where there is a distillation: a config names no teacher, and BMCook's own
    examples take the model before compression.

    Args:
        config: the parsed JSON.
        marks, name: where it came from, for errors.

    Raises:
        CookError: for a key that is unknown, malformed, or on without a counterpart in cook;
            RecipeErrors, with all of them, for several.
    """
    source = _Config(config, marks or {}, name)
    source.check_keys()
    _logits(source)
    _hidden(source)
    _attention(source)
    _pruning(source)
    _quantisation(source)
    if source.switch("MoEfication", "is_moefy"):
        for key in source.sections["MoEfication"]:
            source.problem(("MoEfication", key), "cook makes no mixture of experts", "set is_moefy to false")
    raise_all(sorted(source.problems, key=source.position))
    return source.made


def recipe_document(document: Document) -> Document:
    """The document of a recipe for that of a BMCook config; its marks stay those of the config.

    Raises:
        CookError: see `convert`; RecipeErrors for several.
    """
    raise_all(document.problems)
    made = convert(document.value, document.marks, document.name)
    marks = {path: document.marks[old] for path, old in made.origins.items() if old in document.marks}
    if () in document.marks:
        marks[()] = document.marks[()]
    return Document(made.value, marks, document.name, document.text)


def to_yaml(made: Converted, name: str) -> str:
    """The recipe as YAML, with the notes as comments above it.

    Args:
        name: what the config is called.
    """
    head = [f"From {name}, a config of BMCook. To run: add model, data, train and output, or --set them."]
    return "".join(f"# {line}\n" for line in [*head, *made.notes]) + dump(made.value)


class _Config:
    """A config with its mistakes, and the recipe that it becomes."""

    def __init__(self, value: Mapping[str, Any], marks: Marks, name: str):
        self.value, self.marks, self.name = value, marks, name
        self.problems: Problems = []
        self.made = Converted({"version": 1, "passes": []})
        self.sections: dict[str, Mapping[str, Any]] = {
            key: value[key] if isinstance(value.get(key), Mapping) else {} for key in KEYS
        }

    def problem(self, path: Path, message: str, hint: str | None = None) -> None:
        place = where(self.marks, self.name, path)
        self.problems.append((path, CookError(message, where=place, hint=hint)))

    def position(self, problem: tuple[Path, CookError]) -> tuple[int, int]:
        """The line and column of a mistake."""
        mark = mark_of(self.marks, problem[0])
        return (mark.line, mark.column) if mark else (0, 0)

    def check_keys(self) -> None:
        """Unknown keys, in sections that are off too: a misspelt switch must not turn one off."""
        for section, inner in self.value.items():
            if section not in KEYS:
                hint = nearest(section, KEYS) or f"it has {', '.join(KEYS)}"
                self.problem((section,), "BMCook has no such section", hint)
            elif not isinstance(inner, Mapping):
                self.problem((section,), f"found {inner!r}, expected an object")
            else:
                known = KEYS[section]
                for key in (key for key in inner if key not in known):
                    hint = nearest(key, known) or f"it has {', '.join(known)}"
                    self.problem((section, key), f"BMCook's {section} has no such key", hint)

    def number(self, section: str, key: str, default: float = 0) -> float:
        found = self.sections[section].get(key, default)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found < 0:
            self.problem((section, key), f"found {found!r}, expected a number of at least 0")
            return default
        return found

    def switch(self, section: str, key: str) -> bool:
        found = self.sections[section].get(key, False)
        if not isinstance(found, bool):
            self.problem((section, key), f"found {found!r}, expected true or false")
        return found is True

    def texts(self, section: str, key: str) -> list[str]:
        found = self.sections[section].get(key, [])
        if isinstance(found, list) and all(isinstance(item, str) and item for item in found):
            return found
        self.problem((section, key), f"found {found!r}, expected a list of texts")
        return []

    def add(self, name: str, section: str, options: dict[str, tuple[Any, str]], *notes: str) -> None:
        """Append a pass; each option comes with the key that it was made from."""
        index = len(self.made.value["passes"])
        self.made.value["passes"].append({name: {option: value for option, (value, _) in options.items()}})
        self.made.origins |= {("passes", index): (section,), ("passes", index, name): (section,)}
        for option, (_, key) in options.items():
            self.made.origins["passes", index, name, option] = (section, key)
        self.made.notes += [f"passes[{index}]{note}" for note in notes]

    def learn(self) -> None:
        """Ask for a teacher."""
        if "teacher" not in self.made.value:
            passes = self.made.value.pop("passes")
            self.made.value |= {"teacher": "self", "passes": passes}
            self.made.origins["teacher",] = ("distillation",)
            self.made.notes.append(
                "teacher: the config names none; in BMCook's examples it is the same model."
            )


def _logits(source: _Config) -> None:
    scale = source.number("distillation", "ce_scale")
    if not scale:
        return
    temperature = source.number("distillation", "ce_temp", 1)
    weight = scale / temperature / temperature if temperature else math.inf
    if not math.isfinite(weight):
        source.problem(("distillation", "ce_temp"), f"found {temperature}, expected a temperature above 0")
        return
    source.learn()
    notes = [
        ".weight: for language models BMCook has a sum over tokens / vocabulary, cook a mean over tokens."
    ]
    if temperature != 1:
        why = f"BMCook's loss lacks the factor ce_temp^2, which cook's has: {scale:g} / {temperature:g}^2."
        notes.insert(0, f".weight: {why}")
    options = {"temperature": (temperature, "ce_temp"), "weight": (weight, "ce_scale")}
    source.add("distill.logits", "distillation", options, *notes)


def _hidden(source: _Config) -> None:
    scale = source.number("distillation", "mse_hidn_scale")
    projected = source.switch("distillation", "mse_hidn_proj")
    if not scale:
        return
    source.learn()
    found = source.texts("distillation", "mse_hidn_module")
    pairs: dict[str, str] = {}
    for index, text in enumerate(found):
        path = ("distillation", "mse_hidn_module", index)
        pair = _PAIR.fullmatch(text)
        if pair is None:
            source.problem(path, f"found {text!r}, expected '[post]student.module:[post]teacher.module'")
            continue
        student, teacher = f"{pair[2]}[{_SIDE[pair[1]]}]", f"{pair[4]}[{_SIDE[pair[3]]}]"
        if student in pairs:
            source.problem(path, f"{student} stands twice, and BMCook would take the last", "remove one")
        pairs[student] = teacher
    if not found:
        source.problem(("distillation", "mse_hidn_module"), "names no pair, but mse_hidn_scale is above 0")
    options: dict[str, tuple[Any, str]] = {
        "map": (pairs, "mse_hidn_module"),
        "normalize": (True, "mse_hidn_scale"),
        "weight": (scale * len(pairs), "mse_hidn_scale"),
    }
    notes = [".normalize: a vector by its own length, where BMCook takes the mean length of the batch."]
    if len(pairs) > 1:
        notes.append(f".weight: BMCook's is a sum over pairs, cook's a mean: {scale:g} * {len(pairs)}.")
    if projected:
        options["projection"] = ("each", "mse_hidn_proj")
        notes.append(".projection: of the student, and trained; BMCook's is of the teacher and never trains.")
    source.add("distill.hidden", "distillation", options, *notes)


def _attention(source: _Config) -> None:
    if source.number("distillation", "mse_att_scale"):
        hint = "set it to 0; distill.tinybert and distill.minilm of a recipe learn from attention"
        message = "BMCook takes this key and never computes the loss: there is nothing to convert"
        source.problem(("distillation", "mse_att_scale"), message, hint)


def _pruning(source: _Config) -> None:
    if not source.switch("pruning", "is_pruning"):
        return
    given = source.sections["pruning"]
    method: Any = given.get("mask_method")
    notes = []
    if method == "sprune":
        source.problem(("pruning", "mask_method"), "sprune (L0 masks) has no counterpart in cook yet")
        for key in given["sprune"] if isinstance(given.get("sprune"), Mapping) else ():
            source.problem(("pruning", "sprune", key), "a part of sprune, which has no counterpart yet")
        return
    if method == "m4n2_2d":
        hint = "m4n2_1d is 2:4 along the input, which is what sparse kernels need"
        source.problem(("pruning", "mask_method"), "2:4 along both sides has no counterpart in cook", hint)
    elif method != "m4n2_1d":
        source.problem(("pruning", "mask_method"), f"found {method!r}, expected 'm4n2_1d'")
    elif "sprune" in given:
        notes.append(": sprune is left out; with mask_method m4n2_1d it means nothing.")
    names = source.texts("pruning", "pruned_module")
    if not names:
        source.problem(("pruning", "pruned_module"), "names nothing, but is_pruning is true")
    if given.get("pruning_mask_path") is not None:
        notes.append(": pruning_mask_path is left out; it is where BMCook caches its mask, made anew here.")
    include = [_glob(name) for name in names]
    options = {"pattern": ("2:4", "mask_method"), "include": (include, "pruned_module")}
    source.add("prune.weights", "pruning", options, *notes)


def _glob(name: str) -> str:
    """The modules of the matrices whose names hold `name`, as BMCook looks for them."""
    module = glob.escape(name.removesuffix(".weight"))
    return f"*{module}" if name.endswith(".weight") else f"*{module}*"


def _quantisation(source: _Config) -> None:
    if not source.switch("quantization", "is_quant"):
        return
    names = [f"*{glob.escape(name)}*" for name in source.texts("quantization", "quantized_module")]
    notes = [".include: every linear layer, as in BMCook; here a head tied to the embeddings too."]
    options = {"include": (names or ["*"], "quantized_module")}
    source.add("quant.qat", "quantization", options, *([] if names else notes))
