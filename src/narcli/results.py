"""Results of a run, and their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from .classes import ClassEntry
from .decoding import Clip
from .media.names import clean_name, default_stem, fields_of
from .prompts import Prompt


@dataclass(frozen=True, repr=False)
class Result:
    """One finished picture or clip.

    Args:
        frames: RGB, at the size that the model makes; a picture has one.
        entry: the class or the prompt.
        seed: seed of the sample.
        tokens: (N,) int64 on the CPU, raster order.
        metadata: all settings needed to make it again, as JSON.
    """

    frames: Clip
    entry: ClassEntry | Prompt
    seed: int
    tokens: Tensor
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        frames = f", {len(self.frames)} frames" if len(self.frames) > 1 else ""
        return f"<Result: {str(self.entry)[:60]!r}, seed {self.seed}, {width}x{height}{frames}>"

    @property
    def image(self) -> Image.Image:
        """The picture, or the first frame of a clip."""
        return self.frames[0]

    @property
    def name(self) -> str:
        """File name that the commands choose, without its ending: ``nar-image_c207-golden_retriever_s42``."""
        return default_stem(self.metadata["kind"], self.entry, self.seed)

    @property
    def class_id(self) -> int:
        """The requested class id."""
        return self._class.id

    @property
    def class_name(self) -> str:
        """Name of the requested class, as ``{class_name}`` of ``--output``; ``entry.name`` is the model's."""
        return clean_name(fields_of(self._class, self.seed)["class_name"])

    @property
    def label(self) -> int:
        """Row of the model's class embedding."""
        return self._class.label

    @property
    def prompt(self) -> str:
        """The prompt as typed."""
        if isinstance(self.entry, Prompt):
            return self.entry.text
        raise AttributeError("this result is of a class, not of a prompt")

    @property
    def _class(self) -> ClassEntry:
        if isinstance(self.entry, ClassEntry):
            return self.entry
        raise AttributeError("this result is of a prompt, not of a class")


def about_class(entry: ClassEntry) -> dict[str, Any]:
    """Entry of a class in metadata."""
    fields = {"id": entry.id, "name": entry.name, "label": entry.label}
    return fields | ({"stands_for": entry.stands_for} if entry.stands_for else {})


def describe(metadata: Mapping[str, Any]) -> str:
    """Summarise the settings of a picture in a few words, from its metadata."""
    sampling = metadata["sampling"]
    if "prompt" in metadata:
        title = " ".join(metadata["prompt"].split())
    else:
        row = metadata["class"]
        name = f"{row['stands_for']} ({row['name']})" if "stands_for" in row else row["name"]
        title = f"class {row['id']}, {name}"
    facts = {
        "Steps": metadata["steps"],
        "Seed": metadata["seed"],
        "CFG scale": sampling["cfg_scale"],
        "CFG interval": sampling["cfg_interval"],
        "Temperature": sampling["temperature"],
        "Top-k": sampling["top_k"],
        "Top-p": sampling["top_p"],
        "Model": metadata["model"]["name"],
        "Version": f"narcli {metadata['narcli']}",
    }
    listed = ", ".join(f"{key}: {value}" for key, value in facts.items())
    return f"{title}\n{listed}"
