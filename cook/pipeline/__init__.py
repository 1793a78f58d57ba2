"""The verbs: a recipe carried out, planned, evaluated, ablated; a model cut to fewer layers."""

from __future__ import annotations

from cook.pipeline.ablate import ablate
from cook.pipeline.evaluate import evaluate
from cook.pipeline.plan import Plan, plan
from cook.pipeline.run import run
from cook.pipeline.slice import Slice, slice_folder

__all__ = ["Plan", "Slice", "ablate", "evaluate", "plan", "run", "slice_folder"]
