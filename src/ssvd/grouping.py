"""Breaking utterances down by a field: `gender`, or in bands, `age:6-10,11-15`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssvd.errors import UserError

UNKNOWN = "(unknown)"


@dataclass(frozen=True)
class Grouping:
    """A field, with or without bands of numbers, both ends included; a number in no band counts as "(other)"."""

    field: str
    bands: Mapping[str, tuple[float, float]]

    @classmethod
    def parse(cls, text: str) -> "Grouping":
        """Read `field` or `field:low-high,low-high`; raises UserError if the bands cannot be read."""
        field, _, bands = text.partition(":")
        limits = {}
        for band in bands.split(",") if bands else []:
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)\s*", band)
            if match is None:
                raise UserError(f"The bands of {text!r} cannot be read; write them as age:6-10,11-15.")
            limits[band.strip()] = float(match[1]), float(match[2])
        return cls(field, limits)

    def group(self, value: Any) -> tuple[tuple[int, float, str], str]:
        """Return (sort key, label) of a field's value: numbers and bands in order, then text, "(other)", UNKNOWN."""
        if value is None or value == "":
            return (3, 0.0, ""), UNKNOWN
        if not isinstance(value, int | float):
            return (1, 0.0, str(value)), str(value)
        if not self.bands:
            return (0, value, ""), str(value)
        for position, (label, (low, high)) in enumerate(self.bands.items()):
            if low <= value <= high:
                return (0, position, ""), label
        return (2, 0.0, ""), "(other)"
