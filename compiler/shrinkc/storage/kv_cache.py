"""Widths of keys and values in the KV cache."""

from __future__ import annotations

KV_BITS = (8, 4)
"""The widths that programs can have; the first is the default."""
