"""Recipes: text -> `Recipe`, with every mistake told at once and where it stands."""

from __future__ import annotations

from cook.recipe.recipe import PassSpec, Recipe, load_recipe
from cook.recipe.section import Section, thaw
from cook.recipe.text.schedule_point import SchedulePoint

__all__ = ["PassSpec", "Recipe", "SchedulePoint", "Section", "load_recipe", "thaw"]
