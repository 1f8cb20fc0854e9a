"""Run all sections: write their results into the README and their figures into pictures/.

python -m unet_paper [FOLDER]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

from unet_paper import deformation, initialisation, network, receptive_field, skips, tiling, weight_map

HERE = Path(__file__).parent
REPORTING = (network, tiling, weight_map, deformation, receptive_field, skips, initialisation)
DRAWING = (network, tiling, weight_map, deformation, receptive_field)


def main(folder: Path) -> None:
    """Write the README and the figures into a folder."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for section in DRAWING:
        (pictures / f"{name(section)}.svg").write_text(section.draw())
    readme = (HERE / "README.md").read_text()
    for section in REPORTING:
        readme = filled(readme, name(section), section.report())
    (folder / "README.md").write_text(readme)


def name(section: ModuleType) -> str:
    """Return the name of a section's file, without its suffix."""
    return section.__name__.rpartition(".")[2]


def filled(readme: str, section: str, results: str) -> str:
    """Replace the results of a section in the README, which stand below the command that prints them.

    Raises
    ------
    ValueError
        If the README does not have exactly one block for them.
    """
    place = re.compile(rf"(^```text\n\$ python -m unet_paper\.{section}\n).*?(^```$)", re.MULTILINE | re.DOTALL)
    changed, count = place.subn(lambda found: f"{found[1]}{results}\n{found[2]}", readme)
    if count != 1:
        raise ValueError(f"the README has {count} blocks for the results of {section}, not 1")
    return changed


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
