"""The command ``emseg``, with one module per subcommand: it parses options, calls one flow, prints, and exits with a code.

    0 done   1 unexpected error   2 invalid input or refused, nothing written   3 finished with failed blocks, or not complete
    130, 143 stopped by a signal

Slow imports stay inside the commands, so that ``emseg --help`` is quick.
"""

from emseg.cli.command import cli, main

__all__ = ["cli", "main"]
