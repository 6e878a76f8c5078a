"""The cost model: work of ops as features, and cycles per feature of each target."""

from shrinkc.costs.table import CALIBRATED, CostTable, Cycles, cost_table, read_table
from shrinkc.costs.work import Arithmetic, Work

__all__ = ["CALIBRATED", "Arithmetic", "CostTable", "Cycles", "Work", "cost_table", "read_table"]
