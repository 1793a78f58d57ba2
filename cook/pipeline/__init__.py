"""The verbs: a recipe carried out, planned, evaluated, or run once for each pass left out."""

from __future__ import annotations

from cook.pipeline.ablate import ablate
from cook.pipeline.evaluate import evaluate
from cook.pipeline.plan import Plan, plan
from cook.pipeline.run import run

__all__ = ["Plan", "ablate", "evaluate", "plan", "run"]
