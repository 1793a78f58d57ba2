"""The structure of the package: small folders, and imports without circles."""

from __future__ import annotations

from tests.helpers.layout import between, cycle, modules, sizes

FILES, LINES = 15, 2500
"""What a folder may hold, without the folders in it."""


def test_folders_stay_small() -> None:
    large = {name: size for name, size in sizes().items() if size[0] > FILES or size[1] > LINES}
    assert not large


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    assert cycle(between()) == []


def test_a_circle_would_be_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_everything_that_is_imported_is_counted() -> None:
    edges = between()
    assert {"cook.passes", "cook.options"} <= set(modules())
    assert "cook.model.nn" in edges["cook.model.arch"]
    assert "cook.options" in edges["cook.passes"]
