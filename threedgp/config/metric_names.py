"""Names of metrics, what each one asks for, and which direction is better.

A name is `<family><generated images>[_<real images>|_full]`, for example `fid50k_full`: Frechet Inception distance of
50 000 generated images against the whole real set. Any number is allowed (`fid5k_full`, `kid300`). `k` means thousand,
except that `2k` means 2048 as in StyleGAN2-ADA (arXiv 2006.06676). Precision and recall add the number of neighbours:
`pr50k3_full`, or `pr300_3_full` without the k.

Distances on features of EfficientNet-Lite0 have names of their own (`fd_efflite0_50k_full`): they are no FID.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from threedgp.errors import UsageError

Family = Literal["fid", "kid", "pr", "is", "nfs"]
FAMILIES: dict[str, Family] = {
    "fid": "fid",
    "kid": "kid",
    "pr": "pr",
    "is": "is",
    "nfs": "nfs",
    "fd_efflite0_": "fid",
    "kd_efflite0_": "kid",
    "pr_efflite0_": "pr",
}
"""How a metric's name begins -> its family."""

INCEPTION = "inception"
EFFLITE0 = "tf_efficientnet_lite0"
VGG16 = "vgg16-torchvision"

_OFFLINE_PREFIX = {"fid": "fd_efflite0_", "kid": "kd_efflite0_", "pr": "pr_efflite0_"}
_FULL_LIMIT = {"fid": None, "kid": 1_000_000, "pr": 200_000}  # real images of the `_full` forms; None: all
_NAME = re.compile(
    r"(?P<prefix>fd_efflite0_|kd_efflite0_|pr_efflite0_|fid|kid|pr|is|nfs)"
    r"(?P<count>\d{1,9}k?)(?P<rest>.{0,20})"
)
_LABELS = {
    "fid": "Frechet Inception distance",
    "kid": "Kernel Inception distance",
    "pr": "Precision and recall",
    "is": "Inception score",
    "nfs": "Non-flatness score",
}
_OFFLINE_LABELS = {
    "fid": "Frechet distance (efficientnet_lite0)",
    "kid": "Kernel distance (efficientnet_lite0)",
    "pr": "Precision and recall (efficientnet_lite0)",
}


@dataclass(frozen=True)
class MetricSpec:
    """What a metric name asks for.

    Attributes:
        name: the canonical name.
        family: which formula.
        num_gen: generated images.
        num_real: at most this many real images; None: all of them.
        full: the whole real set, never mirrored; otherwise a seeded random subset, mirrored as the profile says.
        neighbours: k of precision and recall.
        per_image: non-flatness score with the density quantile taken per image instead of per four images.
        extractor: `inception`, `vgg16-torchvision` (precision and recall) or `tf_efficientnet_lite0`; None for the
            non-flatness score, which looks at depth only.
    """

    name: str
    family: Family
    num_gen: int
    num_real: int | None = None
    full: bool = False
    neighbours: int = 3
    per_image: bool = False
    extractor: str | None = INCEPTION

    @property
    def label(self) -> str:
        """Human name of the family; offline distances are never called FID."""
        return (_OFFLINE_LABELS if self.extractor == EFFLITE0 else _LABELS)[self.family]

    @property
    def needs_real(self) -> bool:
        return self.family in _FULL_LIMIT

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the numbers in the result, the deciding one first."""
        match self.family:
            case "pr":
                return f"{self.name}_precision", f"{self.name}_recall"
            case "is":
                return f"{self.name}_mean", f"{self.name}_std"
            case "kid":
                return self.name, f"{self.name}_std"
            case "nfs":
                return self.name, f"{self.name}_entropy", f"{self.name}_clamped"
            case _:
                return (self.name,)

    @property
    def main_value(self) -> str:
        """The number that ranks checkpoints."""
        return self.values[0]

    def of(self, num_gen: int) -> MetricSpec:
        """The same question asked of another number of images."""
        spec = replace(self, num_gen=num_gen)
        return replace(spec, name=_compose(spec, spec.extractor))

    def offline(self) -> MetricSpec:
        """The same question asked with EfficientNet-Lite0 features.

        Raises:
            UsageError: the Inception score has no offline counterpart.
        """
        if self.extractor in (None, EFFLITE0):
            return self
        if self.family == "is":
            raise UsageError("The Inception score is defined by the Inception classifier: it has no offline stand-in.")
        return replace(self, name=_compose(self, EFFLITE0), extractor=EFFLITE0)


def parse_metric(name: str) -> MetricSpec:
    """Understand a metric name; several spellings of one question (`fid2048_full`) get its canonical name.

    Raises:
        UsageError: the name follows no known form, or asks for zero images.
    """
    match = _NAME.fullmatch(name)
    spec = _build(match) if match else None
    if spec is None:
        raise UsageError(
            f"'{name}' is no metric. Known forms: fid50k_full, fid5k, fid5k_1k, kid50k_full, pr50k3_full, is50k, "
            "nfs256, fd_efflite0_50k_full, kd_efflite0_50k_full, pr_efflite0_50k3_full; any number of images."
        )
    if spec.num_gen < 1 or spec.num_real == 0 or spec.neighbours < 1:
        raise UsageError(f"Metric '{name}' asks for zero images: use a number of at least 1.")
    return replace(spec, name=_compose(spec, spec.extractor))


def metric_name(
    family: Family, num_gen: int, *, num_real: int | None = None, offline: bool = False, neighbours: int = 3
) -> str:
    """Compose a name: `metric_name("fid", 50000)` is `fid50k_full`.

    Args:
        family: which formula.
        num_gen: generated images.
        num_real: size of a random part of the real set (for kid and pr only as many as num_gen); None: all of it.
        offline: with EfficientNet-Lite0 features.
        neighbours: k of precision and recall.

    Raises:
        UsageError: a number is not positive, or the metric does not know such a form.
    """
    if num_gen < 1 or (num_real is not None and num_real < 1):
        raise UsageError("A metric needs at least 1 image on each side.")
    if num_real not in (None, num_gen) and family in ("kid", "pr"):
        raise UsageError(
            f"'{family}' compares with the whole real set or with {num_gen} of its images, not {num_real}."
        )
    extractor = _default_extractor(family)
    full = num_real is None and family in _FULL_LIMIT
    spec = MetricSpec("", family, num_gen, num_real, full, neighbours, extractor=extractor)
    spec = parse_metric(_compose(spec, extractor))
    return (spec.offline() if offline else spec).name


def larger_is_better(value_name: str) -> bool:
    """Direction of a value as it appears in results: distances fall, scores rise.

    Raises:
        UsageError: the value belongs to no known metric.
    """
    return parse_metric(_metric_of(value_name)).family in ("pr", "is", "nfs")


def main_value(name: str) -> str:
    """The results key that ranks checkpoints for metric `name`: the name itself except for pr (…_precision) and is."""
    return parse_metric(name).main_value


def _metric_of(value_name: str) -> str:
    return re.sub(r"_(mean|std|precision|recall|entropy|clamped)$", "", value_name)


def _count(text: str) -> int:
    if text == "2k":
        return 2048
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)


def _label(count: int) -> str:
    if count == 2048:
        return "2k"
    return f"{count // 1000}k" if count % 1000 == 0 and count != 2000 else str(count)


def _compose(spec: MetricSpec, extractor: str | None) -> str:
    prefix = _OFFLINE_PREFIX[spec.family] if extractor == EFFLITE0 else spec.family
    count = _label(spec.num_gen)
    if spec.family == "pr":
        count += f"{'' if count.endswith('k') else '_'}{spec.neighbours}"
    suffix = "_full" if spec.full else ""
    if spec.family == "fid" and not spec.full and spec.num_real not in (None, spec.num_gen):
        suffix = f"_{_label(spec.num_real)}"
    return f"{prefix}{count}{suffix}{'_perimage' if spec.per_image else ''}"


def _default_extractor(family: Family) -> str | None:
    return {"nfs": None, "pr": VGG16}.get(family, INCEPTION)


def _build(match: re.Match[str]) -> MetricSpec | None:
    prefix, rest, num_gen = match["prefix"], match["rest"], _count(match["count"])
    offline = prefix.endswith("_efflite0_")
    family = FAMILIES[prefix]
    if family == "nfs":
        if rest not in ("", "_perimage"):
            return None
        return MetricSpec("", "nfs", num_gen, per_image=bool(rest), extractor=None)
    if family == "is":
        return MetricSpec("", "is", num_gen) if rest == "" else None
    neighbours = 3
    if family == "pr":
        found = re.match(r"\d+" if match["count"].endswith("k") else r"_\d+", rest)
        if found is None:
            return None
        neighbours, rest = int(found[0].lstrip("_")), rest[found.end() :]
    full = rest == "_full"
    num_real: int | None = _FULL_LIMIT[family] if full else num_gen
    if rest not in ("", "_full"):
        real = re.fullmatch(r"_(\d+k?)", rest)
        if family != "fid" or real is None:
            return None
        num_real = _count(real[1])
    extractor = EFFLITE0 if offline else _default_extractor(family)
    return MetricSpec("", family, num_gen, num_real, full, neighbours, extractor=extractor)
