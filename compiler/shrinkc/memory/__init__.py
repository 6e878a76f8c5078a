"""Placement of every byte, and an independent check of it."""
