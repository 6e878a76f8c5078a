"""Runs built programs: natively, under qemu-riscv32, on GVSoC."""

from shrinkc.simulate.runner import RunOutput, host_logits, run_program

__all__ = ["RunOutput", "host_logits", "run_program"]
