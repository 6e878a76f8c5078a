"""Execution of built programs: on the host, in QEMU and on GVSoC."""

from shrinkc.simulate.runner import RunOutput, host_logits, run_program

__all__ = ["RunOutput", "host_logits", "run_program"]
