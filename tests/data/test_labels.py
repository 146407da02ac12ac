"""Labels from anywhere are checked at the first command that reads them."""

import json
import math

import pytest

from threedgp.data.labels import parse_labels, read_classes
from threedgp.errors import DataError


def labels(*rows, **more):
    return parse_labels({"labels": [list(row) for row in rows], **more}, "it")


def test_names_of_other_systems_are_those_of_the_pictures():
    found = labels((r"cat\1.png", 0), ("./dog/2.png", 1), ("dog//3.png", 1))
    assert found.values == {"cat/1": 0, "dog/2": 1, "dog/3": 1}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("a.png", [math.nan, 0.0])], "finite"),
        ([("a.png", [math.inf, 0.0])], "finite"),
        ([("a.png", ["1", 0.0])], "finite"),
        ([("a.png", [1.0]), ("b.png", [1.0, 2.0])], "1, 2 numbers"),
        ([("a.png", [])], "empty"),
        ([("a.png", 0), ("a.png", 2)], "two things of a.png: 0 and 2"),
        ([("a.png", 0), ("a.jpg", 1)], "two things"),
        ([("a.png", 0.5)], "whole numbers"),
        ([("a.png", math.nan)], "whole numbers"),
        ([("a.png", math.inf)], "whole numbers"),
        ([("a.png", -1)], "start at 0"),
        ([("a.png", True)], "whole numbers"),
        ([("a.png", 0), ("b.png", [1.0])], "mixes"),
    ],
)
def test_impossible_labels_are_refused(rows, reason):
    with pytest.raises(DataError, match=reason):
        labels(*rows)


@pytest.mark.parametrize("angles", [[90.0, 90.0, 0.0], [0.0, -0.1, 0.0], [0.0, 3.2, 0.0], [200.0, 1.0, 0.0]])
def test_angles_in_degrees_are_refused(angles):
    with pytest.raises(DataError, match="radians"):
        labels(("a.png", 0), camera_angles=[["a.png", angles]])
    with pytest.raises(DataError, match="finite"):
        labels(("a.png", 0), camera_angles=[["a.png", [0.0, math.nan, 0.0]]])
    assert labels(("a.png", 0), camera_angles=[["a.png", [-3.0, 1.5, 0.0]]]).angles == {"a": [-3.0, 1.5, 0.0]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_class_lists_of_any_editor(tmp_path, encoding):
    names = ["Kätzchen", "dog"]
    (tmp_path / "classes.txt").write_bytes("\r\n".join(names).encode(encoding))
    assert read_classes(tmp_path / "classes.txt") == names
    if encoding != "cp1252":
        (tmp_path / "classes.json").write_bytes(json.dumps(names, ensure_ascii=False).encode(encoding))
        assert read_classes(tmp_path / "classes.json") == names
