"""The command line as ``python -m lossworks.cli``."""

from lossworks.cli.app import main

main()
