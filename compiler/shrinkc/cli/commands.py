"""List of commands.  A new command needs its file, its implementation in ``driver``, and an entry here.

Commands import their implementation only when they run, so ``--help`` is fast.
"""

from __future__ import annotations

from shrinkc.cli.chatting import chat_command
from shrinkc.cli.compiling import compile_command
from shrinkc.cli.compressing import compress_command
from shrinkc.cli.differing import diff_command
from shrinkc.cli.doctor import doctor_command
from shrinkc.cli.evaluating import eval_command
from shrinkc.cli.exploring import explore_command
from shrinkc.cli.exporting import export_command
from shrinkc.cli.franken import franken_command
from shrinkc.cli.inspecting import inspect_command
from shrinkc.cli.planning import plan_command
from shrinkc.cli.recipes import recipes_command
from shrinkc.cli.reporting import report_command
from shrinkc.cli.sensitivity import sensitivity_command
from shrinkc.cli.telling import run_command

COMMANDS = (
    compile_command, plan_command, run_command, chat_command, inspect_command, report_command,
    diff_command, export_command, recipes_command, compress_command, eval_command,
    explore_command, sensitivity_command, franken_command, doctor_command,
)  # fmt: skip
