"""Command line: the only package that prints, reads the environment or exits."""
