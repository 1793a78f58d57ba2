"""Write the generated parts of the documentation: option tables, pass headers and the list of passes.

python docs/generate.py            # update the pages
python docs/generate.py --check    # exit 1 if a page is out of date

A generated part lies between `<!-- generated: KIND ARGUMENT -->` and `<!-- end generated -->`; everything
around it is written by hand. A pass without a page gets a new one.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cook.passes import conflict, declared, find
from cook.recipe.schema.build import schema

DOCS = Path(__file__).parent
MARKED = re.compile(r"(<!-- generated: (\w+)(?: (\S+))? -->\n).*?(<!-- end generated -->)", re.DOTALL)
NEW_PAGE = """<!-- generated: pass {name} -->
<!-- end generated -->

## Options

<!-- generated: options {name} -->
<!-- end generated -->
"""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
REQUIRED = object()
Row = tuple[str, Mapping[str, Any], Any]


def pass_header(name: str) -> str:
    """Title, summary, class docstring, and a table of what the pass needs and when it finishes."""
    spec, implementation = declared()[name], find(name)
    lines = [f"# {name}", "", sentence(spec.summary), "", inspect.cleandoc(implementation.__doc__ or ""), ""]
    facts = {
        "Phase": f"`{spec.phase}`",
        "Always needs": ", ".join(sorted(spec.needs)) or "nothing but the model",
        "Models": f"models of {spec.reads}" if spec.reads else "text and image models",
        "Uses in one recipe": "one" if spec.once else "any number",
        **({"Cannot be combined with": conflicts(name)} if conflicts(name) else {}),
    }
    return "\n".join([*lines, *table(("", ""), facts.items())])


def conflicts(name: str) -> str:
    """The passes that this one cannot be combined with, and unless what."""
    specs = declared()
    found = [
        (other, conflict(specs[name], specs[other]) or conflict(specs[other], specs[name]))
        for other in specs
        if other != name
    ]
    lines = [
        f"[`{other}`]({other}.md): {each.reason}" + (f", unless {each.unless}" if each.unless else "")
        for other, each in found
        if each is not None
    ]
    return "<br>".join(lines)


def pass_options(name: str) -> str:
    """The table of options, and examples as they stand in a recipe."""
    spec = declared()[name]
    lines = option_table(rows(spec.schema(), spec.required))
    lines += ["", "Examples of entries in `passes`:", "", "```yaml"]
    lines += [f"- {flow(name, dict(example))}" for example in spec.examples]
    return "\n".join([*lines, "```"])


def recipe_section(name: str) -> str:
    """The keys of one section of a recipe."""
    section = variant(schema()["properties"][name])
    return "\n".join(option_table(rows(section["properties"], section.get("required", ()))))


def pass_list(_: str) -> str:
    """All passes with their summaries."""
    found = ((f"[`{name}`]({name}.md)", spec.summary) for name, spec in declared().items())
    return "\n".join(table(("Pass", "Summary"), found))


KINDS = {
    "pass": pass_header,
    "options": pass_options,
    "section": recipe_section,
    "passes": pass_list,
}


def rows(properties: Mapping[str, Any], required: Iterable[str], prefix: str = "") -> Iterator[Row]:
    """(key, schema, default) of each property, nested mappings with dotted keys, required ones first."""
    asked = list(required)
    for key in sorted(properties, key=lambda each: each not in asked):
        option = properties[key]
        default = REQUIRED if key in asked else option.get("default", None)
        yield prefix + key, option, default
        inner = variant(option)
        if inner.get("additionalProperties") is False and "properties" in inner:
            yield from rows(inner["properties"], inner.get("required", ()), f"{prefix}{key}.")


def variant(option: Mapping[str, Any]) -> Mapping[str, Any]:
    """The alternative of a schema that is a mapping with keys of its own, or the schema itself."""
    return next((each for each in option.get("anyOf", ()) if "properties" in each), option)


def option_table(found: Iterable[Row]) -> list[str]:
    """Rows of a Markdown table: key, type, default, description."""
    cells = (
        (f"`{key}`", kind(each), shown(default), each.get("description", "")) for key, each, default in found
    )
    return table(("Key", "Type", "Default", "Description"), cells)


def table(header: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def kind(option: Mapping[str, Any]) -> str:
    """The type and range of a value in words."""
    if option.get("x-schedule-point"):
        return "schedule point"
    if "enum" in option:
        return ", ".join(f"`{plain(value)}`" for value in option["enum"])
    if "const" in option:
        return f"`{plain(option['const'])}`"
    if "anyOf" in option:
        return " or ".join(dict.fromkeys(kind(each) for each in option["anyOf"]))
    types = option.get("type", "any")
    words = [types] if isinstance(types, str) else list(types)
    values = option.get("additionalProperties")
    names = {"array": "list", "object": "mapping"}
    if "items" in option:
        names["array"] = f"list of {kind(option['items'])}"
    if isinstance(values, Mapping):
        names["object"] = f"mapping to {kind(values)}"
    bounds = [f"{sign} {option[word]}" for word, sign in BOUNDS.items() if word in option]
    return ", ".join([" or ".join(names.get(word, word) for word in words), *bounds])


def shown(default: object) -> str:
    """A default as a recipe writes it."""
    return "required" if default is REQUIRED else f"`{plain(default)}`"


def plain(value: object) -> str:
    """A value as a recipe writes it: strings bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def flow(name: str, options: Mapping[str, Any]) -> str:
    """`name: {option: value}` in one line of YAML, or the name alone."""
    values = json.loads(json.dumps(options))  # tuples and frozen mappings as lists and dicts
    text = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000)
    return f"{name}: {text.strip()}" if values else name


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def updated(text: str) -> str:
    """A page with its generated parts as they are now."""
    return MARKED.sub(lambda found: f"{found[1]}{KINDS[found[2]](found[3] or '')}\n{found[4]}", text)


def stale() -> dict[Path, str]:
    """The pages that are out of date, with the text that they should have."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
    for name in declared():
        pages.setdefault(DOCS / "passes" / f"{name}.md", NEW_PAGE.format(name=name))
    expected = {path: updated(text) for path, text in pages.items()}
    return {path: text for path, text in expected.items() if not path.is_file() or text != pages[path]}


def main() -> int:
    """Update the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    found = stale()
    for path, text in found.items():
        print(f"{path.relative_to(DOCS.parent)} {'is out of date: run `make docs`' if check else 'updated'}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
