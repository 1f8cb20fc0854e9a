"""Run the command ``emseg`` as ``python -m emseg``."""

from emseg.cli import main

if __name__ == "__main__":
    main()
