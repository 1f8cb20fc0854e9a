"""The settings that decide the bytes of a run, defined once.

The options of the command line, their help, the keywords of `emseg.segment` and `emseg.plan`, and the file of settings of a
submitted run are all made from the fields of `RunSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from emseg.settings.fields import setting
from emseg_core.errors import InputError

if TYPE_CHECKING:  # the command line imports this for its help
    from emseg_core.box import Box, Triple
    from emseg_core.normalise import Scope
    from emseg_core.recipe import Recipe
    from emseg_core.specs.contract import Norms
    from emseg_core.specs.numerics import Backend, Precision
    from emseg_core.store.files.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Settings of a run that decide what it stores.

    Each of them is fixed when an output is started; a later run on the same output must have the same ones.
    """

    channel: int | str | None = setting(
        None, "Channel to segment, by index or name. Default: the one the output was started with."
    )
    timepoint: int | None = setting(None, "Timepoint to segment. Default: the one the output was started with.")
    level: int | None = setting(
        None, "Pyramid level to segment (default 0, the finest); same as passing the path of that array."
    )
    model: str | Path | Sequence[str | Path] | None = setting(
        None,
        "A bundled model (see `emseg models`) or a model file; several make an ensemble, whose predictions are averaged. "
        "Default: the bundled one.",
    )
    predictor: str | None = setting(
        None,
        "A class of your own that predicts, module:Class, instead of a model; each worker imports it. From Python alone: see "
        "emseg_core.model.python_predictor.",
    )
    roi: str | Box | None = setting(
        None, "Part of the volume to segment, z0:z1,y0:y1,x0:x1 in voxels, or in nanometres with nm at the end. Default: all."
    )
    probabilities: bool = setting(False, "Store the probability of each class beside the labels.")
    heads: tuple[str, ...] | None = setting(
        None,
        "Heads of the network to store, by name (see `emseg models show`), of a network that has several: the last one is "
        "written last. Default: those the output was started with, else all.",
    )
    empty: tuple[float, str] | None = setting(
        None,
        "A grey value and a class: blocks that contain only this grey value (e.g. padding) are given this class without "
        "running the network. Default: never.",
    )
    tta: bool = setting(
        False, "Test-time augmentation: average over rotations by 90 degrees and flips of the image plane, 8 times the work."
    )
    pyramid: bool | None = setting(
        None, "Whether to store coarser levels for viewers. Default: as the output was started, else where it is large."
    )
    mask: str | Path | None = setting(
        None,
        "A Zarr array or OME-Zarr image of any voxel size: blocks in which it is zero everywhere are skipped. Default: the "
        "one the output was started with.",
    )
    normalise: Scope | None = setting(
        None, "Measure the mean and deviation of intensities once per volume or per z slice. Default: as the model was trained."
    )
    norms: Norms | None = setting(
        None,
        "Statistics that instance, group and layer norms over space use: those of each tile, or frozen ones, measured once on "
        "a sample of the volume, so that labels do not depend on tiles. Default: as the output was started, else tile.",
    )
    tile: Triple | None = setting(None, "Shape (z, y, x) in voxels of one network input. Default: chosen by the planner.")
    threads: int = setting(1, "Threads of each predictor; another number may change the last bits.")
    backend: Backend | None = setting(
        None,
        "Library that runs the network. Default: the one the output was started with, else OpenVINO on a CPU if it is "
        "installed.",
    )
    precision: Precision | None = setting(
        None,
        "Number type of the activations. Default: the one the output was started with, else the fastest here that gives "
        "99.9 % of a sample the same labels as float32.",
    )

    @classmethod
    def of(cls, recipe: Recipe, **others: Any) -> Self:
        """Return the settings that an output was started with, except the paths of its model and its mask.

        Parameters
        ----------
        recipe
            The recipe of the output.
        **others
            Settings to take instead.

        Returns
        -------
        RunSettings
            The settings.
        """
        known = {
            "channel": recipe.volume.channel,
            "timepoint": recipe.volume.timepoint,
            "roi": recipe.plan.region,
            "probabilities": recipe.probabilities,
            "heads": recipe.heads or None,
            "tta": recipe.tta,
            "tile": recipe.plan.tile,
            "norms": "frozen" if getattr(recipe.plan.model, "norms", ()) else None,
            "threads": recipe.numerics.threads,
        }
        return cls(**{**known, **others})

    def level_of(self, volume: Place) -> Place:
        """Return the array of the chosen level of a volume, or the volume itself."""
        if self.level is None:
            return volume
        from emseg_core.store.volumes.volume import level_path

        return level_path(volume, self.level)

    def to_table(self) -> dict[str, Any]:
        """Return the settings that are not the default ones, as values of TOML.

        Returns
        -------
        dict
            Values by the name of the setting.

        Raises
        ------
        InputError
            If a class predicts: what a file names is never imported.
        """
        if self.predictor is not None:
            raise InputError(
                f"the class {self.predictor} cannot be named in a file of settings, as what a file names is never imported: "
                "give its name to the run itself"
            )
        given = ((entry.name, getattr(self, entry.name), entry.default) for entry in fields(self))
        return {name: _plain(value) for name, value, default in given if value != default}


class SettingsKeywords(TypedDict, total=False):
    """The fields of `RunSettings` as keywords."""

    channel: int | str | None
    timepoint: int | None
    level: int | None
    model: str | Path | Sequence[str | Path] | None
    predictor: str | None
    roi: str | Box | None
    probabilities: bool
    heads: tuple[str, ...] | None
    empty: tuple[float, str] | None
    tta: bool
    pyramid: bool | None
    mask: str | Path | None
    normalise: Scope | None
    norms: Norms | None
    tile: Triple | None
    threads: int
    backend: Backend | None
    precision: Precision | None


def _plain(value: Any) -> Any:
    """Return a setting as a value of TOML; paths become absolute."""
    from emseg_core.box import Box

    match value:
        case Path():
            return str(value.absolute())
        case Box():
            return str(value)
        case tuple() | list():
            return [_plain(entry) for entry in value]
    return value


def settings_from(settings: RunSettings | None, given: Mapping[str, Any]) -> tuple[RunSettings, dict[str, Any]]:
    """Return settings given as an object or as keywords, and the other keywords.

    Parameters
    ----------
    settings
        The settings as an object; None if they are among the keywords.
    given
        Keywords of a call.

    Returns
    -------
    tuple
        The settings, and the remaining keywords.

    Raises
    ------
    InputError
        If they are given both ways.
    """
    names = {entry.name for entry in fields(RunSettings)}
    own = {name: value for name, value in given.items() if name in names}
    others = {name: value for name, value in given.items() if name not in names}
    if settings is not None and own:
        raise InputError(
            f"settings are given as an object and as keywords ({', '.join(own)}): use one of them, or dataclasses.replace()"
        )
    return settings or RunSettings(**own), others
