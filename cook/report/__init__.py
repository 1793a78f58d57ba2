"""What a run did: report.json, and the tables and the model card drawn from it."""

from cook.report.card import card
from cook.report.report import Model, PassRow, Reload, Report, State
from cook.report.table import ablation_table, markdown, plan_table, slice_table, terminal

__all__ = [
    "Model",
    "PassRow",
    "Reload",
    "Report",
    "State",
    "ablation_table",
    "card",
    "markdown",
    "plan_table",
    "slice_table",
    "terminal",
]
