"""What work takes how many cycles: features of ops, coefficients per target, and how those are fitted."""

from shrinkc.costs.table import CALIBRATED, CostTable, Cycles, cost_table, read_table
from shrinkc.costs.work import Arithmetic, Work

__all__ = ["CALIBRATED", "Arithmetic", "CostTable", "Cycles", "Work", "cost_table", "read_table"]
