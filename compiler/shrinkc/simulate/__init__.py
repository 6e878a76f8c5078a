"""Runs built programs: natively, under qemu-riscv32, on GVSoC."""

from shrinkc.simulate.runner import TARGET_OF, RunOutput, host_logits, run_program

__all__ = ["TARGET_OF", "RunOutput", "host_logits", "run_program"]
