"""A Dask worker on another host, with a private folder there for temporary files.

``python -m emseg.clusters.worker`` takes the options of ``dask worker``; the folder is made in ``--local-directory``.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from distributed.cli.dask_worker import main as dask_worker

from emseg.clusters.private_folder import private_folder
from emseg.clusters.semaphores import SEMAPHORES_PER_WORKER, check_semaphores
from emseg_core.errors import EmsegError
from emseg_core.machine import raise_file_limit


def main(words: Sequence[str]) -> None:
    """Work until the scheduler ends.

    Parameters
    ----------
    words
        Options of ``dask worker``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local-directory", type=Path)
    own, others = parser.parse_known_args(words)
    raise_file_limit()
    try:
        check_semaphores(SEMAPHORES_PER_WORKER, f"a worker on {socket.gethostname()}")
        with private_folder(own.local_directory) as folder:
            dask_worker([*others, "--local-directory", str(folder)])
    except EmsegError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":  # worker processes import this file
    main(sys.argv[1:])
