"""``python -m emseg_workflows`` is the command ``emseg``."""

from emseg_workflows.cli import main

if __name__ == "__main__":
    main()
