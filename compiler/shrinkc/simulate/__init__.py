"""Execution of built programs: on the host, in QEMU and on GVSoC."""

from shrinkc.simulate.runner import KeptProgram, RunOutput, host_logits, run_program

__all__ = ["KeptProgram", "RunOutput", "host_logits", "run_program"]
