"""Building of compiled directories, and search for the tools."""

from shrinkc.build.layout import PROGRAM
from shrinkc.build.make import build_program
from shrinkc.build.tools import Tool, find_tool, find_tools, require_tool

__all__ = ["PROGRAM", "Tool", "build_program", "find_tool", "find_tools", "require_tool"]
