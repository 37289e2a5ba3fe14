"""Contact sheets and the sheets of sweeps: which picture goes where, under which label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..prompts import shorten
from ..settings import Sample
from ..settings.sweeps import points_of, words_of
from .recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

    from ..viz.sheets import Labelled


def draw_sheet(
    recipe: Recipe, samples: Sequence[Sample], pictures: Sequence[Image.Image], scale: int
) -> Image.Image:
    """Put the pictures of a run on one sheet.

    Args:
        recipe: recipe of the run, with a sweep, or with a contact sheet with or without labels.
        samples: its samples; of a sweep those of each point in turn.
        pictures: a picture for each.
        scale: factor by which each is enlarged.
    """
    from ..viz.sheets import columns_of, contact_sheet, labelled_sheet

    rows = len({sample.entry for sample in samples})
    if recipe.ranges:
        return labelled_sheet(_swept(recipe, samples, pictures), scale)
    if not recipe.labels:
        return contact_sheet(pictures, rows, scale)
    labelled = [(picture, _label(sample)) for picture, sample in zip(pictures, samples, strict=True)]
    width = columns_of(len(pictures), rows)
    return labelled_sheet([("", labelled[at : at + width]) for at in range(0, len(labelled), width)], scale)


def about_sheet(recipe: Recipe) -> dict[str, Any]:
    """Return metadata of a contact sheet or of the sheet of a sweep; empty without one."""
    if recipe.ranges:
        return {"sweep": {name: list(values) for name, values in recipe.ranges.items()}}
    return ({"contact_sheet": True} if recipe.sheet else {}) | ({"labels": True} if recipe.labels else {})


def _swept(
    recipe: Recipe, samples: Sequence[Sample], pictures: Sequence[Image.Image]
) -> list[tuple[str, list[Labelled]]]:
    """Lay out a sweep: a row for each value of its first setting.

    The columns are the samples or, with a second setting, its values, in a block for each sample.
    """
    points = points_of(recipe.ranges)
    each = len(samples) // len(points)
    first, *second = recipe.ranges
    columns = len(points) // len(recipe.ranges[first])
    rows: list[tuple[str, list[Labelled]]] = []
    for block in range(each) if second else (0,):
        if second:
            rows.append((", ".join(_label(samples[block])), []))
        for at in range(0, len(points), columns):
            title = words_of({first: points[at][first]})
            row: list[Labelled]
            if second:
                row = [
                    (pictures[point * each + block], [words_of({second[0]: points[point][second[0]]})])
                    for point in range(at, at + columns)
                ]
            else:
                row = [(pictures[at * each + k], _label(samples[k])) for k in range(each)]
            rows.append((title, row))
    return rows


def _label(sample: Sample) -> list[str]:
    """Return class or prompt, and seed, of a picture."""
    return [shorten(str(sample.entry)), f"seed {sample.seed}"]
