"""Leaf families of the embedded world, by domain; `FAMILIES` is the registry."""

from __future__ import annotations

from saerl_lib.data.families.algebra import ALGEBRA
from saerl_lib.data.families.arithmetic import ARITHMETIC
from saerl_lib.data.families.base import Family, Task
from saerl_lib.data.families.geometry import GEOMETRY
from saerl_lib.data.families.number_theory import NUMBER_THEORY
from saerl_lib.data.families.ratios import RATIOS
from saerl_lib.data.families.statistics import STATISTICS

FAMILIES: dict[str, Family] = {
    family.name: family for family in (*ARITHMETIC, *RATIOS, *ALGEBRA, *NUMBER_THEORY, *STATISTICS, *GEOMETRY)
}
"""Every leaf family by its short name, in a fixed order."""

__all__ = ["FAMILIES", "Family", "Task"]
