"""Labels of a set: `dataset.json` with one value an image, made from class folders or carried over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threedgp.data.source import DATASET_JSON, ImageSource, class_of, classes_of, read_file, stem_of
from threedgp.errors import DataError, UsageError
from threedgp.files import decode_text, parse_json, read_json

CLASSES_JSON = "classes.json"
LARGEST_ANGLE = 4 * math.pi  # radians: more is a mistake, most likely degrees
Label = int | list[float]


@dataclass
class Labels:
    """What is known about the images of a set, by path without extension (which stages may change).

    Attributes:
        values: class number, or a list of floats that is used as it is; None for an unlabelled set.
        classes: names of the classes by number, when they have names.
        angles: camera angles [yaw, pitch, roll] in radians.
    """

    values: dict[str, Label] | None = None
    classes: list[str] | None = None
    angles: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self, names: Iterable[str], resolution: int | None = None) -> dict[str, Any]:
        """The content of dataset.json for these image paths."""
        names = list(names)
        content: dict[str, Any] = {"labels": None}
        if self.values is not None:
            content["labels"] = [[name, self.values[stem_of(name)]] for name in names]
        if self.angles:
            content["camera_angles"] = [[name, self.angles[stem_of(name)]] for name in names]
        if self.classes is not None:
            content["classes"] = self.classes
            content["num_classes"] = len(self.classes)
        if resolution is not None:
            content["resolution"] = resolution
        return content


def read_labels(source: ImageSource, *, complete: bool = True) -> Labels | None:
    """The set's own dataset.json, or None when it has none.

    Raises:
        DataError: it is damaged, or leaves an image out although it should be complete.
    """
    if DATASET_JSON not in source:
        return None
    where = f"{source.root}/{DATASET_JSON}"
    try:
        labels = parse_labels(parse_json(source.read(DATASET_JSON)), where)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON ({error}).") from None
    for what, known in (("label", labels.values), ("camera_angles", labels.angles or None)):
        if complete and known is not None:
            _require(what, known, source, where)
    return labels


def parse_labels(content: Any, where: str) -> Labels:
    """Labels from the content of a dataset.json, or from a plain {path: value} object."""
    if isinstance(content, dict) and "labels" not in content and "camera_angles" not in content:
        content = {"labels": list(content.items())}
    try:
        pairs, angles = content["labels"], content.get("camera_angles")
        values = None if pairs is None else _by_stem(pairs, _value, where)
        angles = _by_stem(angles or [], _angles, where)
        classes = content.get("classes")
        classes = None if classes is None else [str(name) for name in classes]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise DataError(
            f'{where} must look like {{"labels": [["a/1.png", 0], ...]}} with whole numbers or lists of finite numbers.'
        ) from None
    for name, (_, pitch, _) in angles.items():
        if not 0 <= pitch <= math.pi or any(abs(angle) > LARGEST_ANGLE for angle in angles[name]):
            raise DataError(
                f"{where}: the camera_angles {angles[name]} of {name} are not [yaw, pitch, roll] in radians, with the "
                "pitch between 0 (seen from above) and pi. Are they degrees?"
            )
    whole = [value for value in (values or {}).values() if isinstance(value, int)]
    widths = sorted({len(value) for value in (values or {}).values() if isinstance(value, list)})
    for wrong, problem in (
        (whole and widths, "mixes class numbers with lists of numbers"),
        (len(widths) > 1, f"has labels of {', '.join(map(str, widths))} numbers; all must be as long"),
        (widths == [0], "has labels that are empty lists"),
        (min(whole, default=0) < 0, f"has the class number {min(whole, default=0)}, but they start at 0"),
        (
            classes is not None and max(whole, default=-1) >= len(classes),
            f"names {len(classes or [])} classes but has the class number {max(whole, default=0)}",
        ),
    ):
        if wrong:
            raise DataError(f"{where} {problem}.")
    return Labels(values, classes, angles)


def choose_labels(source: ImageSource, mode: str = "auto", classes: list[str] | None = None) -> Labels:
    """The labels a stage writes for a set.

    Args:
        mode: `auto`: the set's own dataset.json if it has one, else class folders (the first folder of each path), else
            none when all images lie in the root. `none`: no labels. Otherwise the path of a JSON file with labels.
        classes: names of the classes in the order of their numbers, so that a part of a set keeps the numbering of
            the whole.

    Raises:
        DataError: some images have no label, lie in no folder, or in one that `classes` does not name.
    """
    own = read_labels(source) if mode in ("auto", "none") else None
    if mode == "none":
        return Labels(angles=own.angles if own else {})
    if mode != "auto":
        if not Path(mode).is_file():
            raise UsageError(f"--labels must be auto, none or a JSON file; there is no file '{mode}'.")
        own = parse_labels(read_json(mode), mode)
        _require("label", own.values or {}, source, mode)
    if own is not None:
        return Labels(own.values, classes or own.classes, own.angles)
    found = classes_of(source.names)
    if classes is None and not found:
        return Labels()
    loose = [name for name in source.names if class_of(name) is None]
    if loose:
        raise DataError(
            f"{len(loose)} images of {source.root} lie beside the class folders (first: {loose[0]}). "
            "Move them into folders, or use --labels none."
        )
    names = classes or found
    number = {name: index for index, name in enumerate(names)}
    unknown = [name for name in found if name not in number]
    if unknown:
        raise DataError(f"{source.root} has folders that the class list does not name: {', '.join(unknown[:5])}.")
    return Labels({stem_of(name): number[name.split("/", 1)[0]] for name in source.names}, names)


def read_classes(path: Path | str) -> list[str]:
    """Class names from a classes.json (a list), a dataset.json, or a text file with one name a line.

    Raises:
        UsageError: the file is missing, empty or names a class twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"The class list {path} does not exist.")
    if path.suffix.lower() == ".json":
        content = read_json(path)
        names = content.get("classes") if isinstance(content, dict) else content
    else:
        names = [line.strip() for line in decode_text(read_file(path)).splitlines() if line.strip()]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} holds no list of class names.")
    if len(set(names)) != len(names):
        raise UsageError(f"{path} names a class twice.")
    return names


def _require(what: str, known: dict[str, Any], source: ImageSource, where: str) -> None:
    missing = [name for name in source.names if stem_of(name) not in known]
    if missing:
        raise DataError(f"{where} has no {what} for {len(missing)} images (first: {missing[0]}).")


def _by_stem(pairs: Any, convert: Callable[[Any], Any], where: str) -> dict[str, Any]:
    """Values by path without extension. Raises `DataError` for a picture that has two different ones."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        parts = str(name).replace("\\", "/").split("/")
        stem, new = stem_of("/".join(part for part in parts if part not in ("", "."))), convert(value)
        if found.setdefault(stem, new) != new:
            raise DataError(f"{where} says two things of {name}: {found[stem]} and {new}. Remove one.")
    return found


def _value(value: Any) -> Label:
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        raise TypeError(value)
    if isinstance(value, list):
        return [_finite(number) for number in value]
    if int(value) != value:
        raise ValueError(value)
    return int(value)


def _angles(value: Any) -> list[float]:
    yaw, pitch, roll = value
    return [_finite(yaw), _finite(pitch), _finite(roll)]


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)
