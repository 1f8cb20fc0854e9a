"""Colours of states, stages and classes, the same in reports, on the dashboard and in the viewer."""

from __future__ import annotations

from collections.abc import Iterable

from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.store.zarrs.omero import colour

BLUE, RED, ORANGE, AMBER = "#2b7bba", "#c62828", "#d95f0e", "#f5a623"
STAGE_COLOURS = {"read": BLUE, "wait": "#c3c8ce", "predict": "#3a9d6e", "stitch": AMBER, "write": "#8e5ea2"}
"""Colours of the stages of a block, in their order in time."""
NOT_COMPUTED_COLOUR = (120, 120, 120)


def class_colours(classes: int) -> dict[int, tuple[int, int, int]]:
    """Return the colour of each label: those that the output's metadata give to viewers, and grey for *not computed*.

    Returns
    -------
    dict
        Red, green and blue by label.
    """
    return {**{label: colour(label) for label in range(classes)}, NOT_COMPUTED: NOT_COMPUTED_COLOUR}


def hex_colour(rgb: Iterable[int]) -> str:
    """Format a colour as HTML has it.

    Returns
    -------
    str
        Text such as ``#2b7bba``.
    """
    return f"#{bytes(rgb).hex()}"
