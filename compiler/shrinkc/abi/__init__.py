"""What compiler and program say to each other, stated once: input words, lines, exit codes, sizes.

``contract.py`` is the statement.  ``tests/abi/header.py`` makes ``sc_abi.h`` and ``sc_contract.h`` of it.
"""

from shrinkc.abi.contract import *  # noqa: F403
