"""All sections: what each tells goes into the README, its picture into pictures/.

python -m unet_paper [FOLDER]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

from unet_paper import deformation, initialisation, network, receptive_field, skips, tiling, weight_map

HERE = Path(__file__).parent
TELLING = (network, tiling, weight_map, deformation, receptive_field, skips, initialisation)
DRAWING = (network, tiling, weight_map, deformation, receptive_field)


def main(folder: Path) -> None:
    """Write the README and the pictures into a folder."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for section in DRAWING:
        (pictures / f"{name(section)}.svg").write_text(section.drawn())
    readme = (HERE / "README.md").read_text()
    for section in TELLING:
        readme = filled(readme, name(section), section.told())
    (folder / "README.md").write_text(readme)


def name(section: ModuleType) -> str:
    """Name of a section, as a file."""
    return section.__name__.rpartition(".")[2]


def filled(readme: str, section: str, told: str) -> str:
    """The README, with what a section tells below the command that prints it.

    Raises
    ------
    ValueError
        If the README has not exactly one place for it.
    """
    place = re.compile(rf"(^```text\n\$ python -m unet_paper\.{section}\n).*?(^```$)", re.MULTILINE | re.DOTALL)
    changed, count = place.subn(lambda found: f"{found[1]}{told}\n{found[2]}", readme)
    if count != 1:
        raise ValueError(f"the README has {count} places for what {section} tells, not one")
    return changed


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
