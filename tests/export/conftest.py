"""The command line of the tests of commands."""

from cli.conftest import cli as cli
