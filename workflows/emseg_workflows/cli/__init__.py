"""The command ``emseg``, a file for each of its commands: it parses, calls one flow, prints, and leaves with an exit code.

    0 done   1 unexpected   2 bad input or refused, nothing written   3 finished with failed blocks, or not complete
    130, 143 stopped by a signal

Heavy imports stay inside the commands, so that ``emseg --help`` is quick.
"""

from emseg_workflows.cli.command import cli, main

__all__ = ["cli", "main"]
