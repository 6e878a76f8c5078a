"""``python -m shrinkc``."""

from shrinkc.cli.main import main

main()
