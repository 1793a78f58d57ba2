"""How sparsity grows over a pass's window."""

from __future__ import annotations


def sparsity_at(progress: float, final: float, schedule: str = "cubic", initial: float = 0.0) -> float:
    """The share of zeros due when `progress` (0 to 1) of the window has passed.

    constant: `final` from the start. linear: a straight line. cubic (Zhu and Gupta 2017, equation 1):
    `final + (initial - final) * (1 - progress)^3`, fast while many weights are superfluous.

    >>> sparsity_at(0.5, 0.8, "cubic")
    0.7
    """
    if schedule == "constant" or progress >= 1:
        return final
    if schedule == "linear":
        return initial + (final - initial) * progress
    if schedule == "cubic":
        return final + (initial - final) * (1 - progress) ** 3
    raise ValueError(f"no schedule {schedule!r}; there are constant, linear and cubic")
