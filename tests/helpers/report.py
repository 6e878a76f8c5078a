"""A run with a profile, as ``run --json`` prints it, of what a report estimates."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]


def run_of(data: Data, factor: float) -> Data:
    """Every step took ``factor`` times what the report ``data`` estimates."""
    phases = {phase["phase"]: phase for phase in data["phases"]}
    return {
        "target": "gvsoc",
        "model": data["name"],
        "prompt_tokens": [1, 2, 3],
        "new_tokens": [4, 5, 6],
        "text": "",
        "cycles": None,
        "lookup": None,
        "profile": {
            "prefill": _phase(phases["prefill"], 1, factor),
            "decode": _phase(phases["decode"], 2, factor),
        },
        "seconds": 1.0,
        "verdict": {"compared": 77, "mismatched": 0, "first_difference": None},
    }


def _phase(phase: Data, steps: int, factor: float) -> Data:
    def row(cycles: float) -> Data:
        return {
            "cycles": round(cycles, 1), "active": round(0.6 * cycles, 1), "instructions": 1.0,
            "load_stalls": round(0.1 * cycles, 1), "icache": round(0.1 * cycles, 1),
            "transfers": round(0.1 * cycles, 1), "barrier": round(0.3 * cycles, 1), "worst": cycles,
        }  # fmt: skip

    return {
        "steps": steps,
        "cycles": round(factor * phase["estimated"] + 100, 1),
        "ops": [{"op": o["op"], **row(factor * o["estimated"])} for o in phase["ops"]],
        "layers": [
            {"layer": s["layer"], "op": s["op"], **row(factor * s["estimated"])}
            for s in phase["steps"]
            if s["layer"] is not None
        ],
    }
