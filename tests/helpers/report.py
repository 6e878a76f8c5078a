"""A run with a profile, as ``run --json`` prints it, of what a report estimates."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]


def run_of(data: Data, factor: float) -> Data:
    """Every step took ``factor`` times what the report ``data`` estimates."""
    return {
        "target": "gvsoc",
        "model": data["name"],
        "prompt_tokens": [1, 2, 3],
        "new_tokens": [4, 5, 6],
        "text": "",
        "cycles": None,
        "prompt_lookup": None,
        "profile": {
            "prefill": _phase(data["timeline"]["prefill_steps"], 1, factor),
            "decode": _phase(data["timeline"]["decode_steps"], 2, factor),
        },
        "seconds": 1.0,
        "verdict": {"compared": 77, "mismatched": 0, "first_difference": None},
    }


def _phase(estimated: list[Data], steps: int, factor: float) -> Data:
    def row(cycles: float) -> Data:
        return {
            "cycles": round(cycles, 1), "active": round(0.6 * cycles, 1), "instructions": 1.0,
            "load_stalls": round(0.1 * cycles, 1), "icache": round(0.1 * cycles, 1),
            "transfers": round(0.1 * cycles, 1), "barrier": round(0.3 * cycles, 1), "load_imbalance": 1.667,
        }  # fmt: skip

    ops: dict[str, float] = {}
    for s in estimated:
        ops[s["op"]] = ops.get(s["op"], 0.0) + factor * s["estimated_cycles"]
    return {
        "steps": steps,
        "cycles": round(sum(ops.values()) + 100, 1),
        "ops": [{"op": op, **row(cycles)} for op, cycles in ops.items()],
        "layers": [
            {"layer": s["layer"], "op": s["op"], **row(factor * s["estimated_cycles"])}
            for s in estimated
            if s["layer"] is not None
        ],
    }
