"""A Dask worker on another host, which puts aside what it must in a private folder of its own there.

``python -m emseg_workflows.clusters.worker`` takes what ``dask worker`` does; the folder is made in ``--local-directory``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distributed.cli.dask_worker import main as dask_worker

from emseg.errors import InputError
from emseg_workflows.clusters.private_folder import private_folder


def main(words: Sequence[str]) -> None:
    """Work until the scheduler has gone, then exit."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local-directory", type=Path)
    own, others = parser.parse_known_args(words)
    try:
        with private_folder(own.local_directory) as folder:
            dask_worker([*others, "--local-directory", str(folder)])
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":  # worker processes import this file
    main(sys.argv[1:])
