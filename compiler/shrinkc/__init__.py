"""Compiles a LLaMA checkpoint to an integer-only C program and proves every integer of its runs."""

__version__ = "0.1.0"
