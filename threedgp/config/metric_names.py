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

INCEPTION = "inception"
EFFLITE0 = "tf_efficientnet_lite0"
VGG16 = "vgg16-torchvision"

_N = r"\d{1,9}k?"
_FORMS: dict[Family, str] = {
    "fid": rf"(fid|fd(?P<offline>_efflite0_))(?P<gen>{_N})(_(?P<real>full|{_N}))?",
    "kid": rf"(kid|kd(?P<offline>_efflite0_))(?P<gen>{_N})(_(?P<real>full))?",
    "pr": rf"pr(?P<offline>_efflite0_)?(?P<gen>{_N})((?<=k)|(?<!k)_)(?P<neighbours>\d{{1,9}})(_(?P<real>full))?",
    "is": rf"is(?P<gen>{_N})",
    "nfs": rf"nfs(?P<gen>{_N})(?P<per_image>_perimage)?",
}
_OFFLINE_PREFIX = {"fid": "fd_efflite0_", "kid": "kd_efflite0_", "pr": "pr_efflite0_"}
_FULL_LIMIT = {"fid": None, "kid": 1_000_000, "pr": 200_000}  # real images of the `_full` forms; None: all
_LABELS = {"fid": "Frechet Inception distance", "kid": "Kernel Inception distance", "pr": "Precision and recall"}
_LABELS |= {"is": "Inception score", "nfs": "Non-flatness score"}


@dataclass(frozen=True)
class MetricSpec:
    """What a metric name asks for.

    Attributes:
        family: which formula.
        num_gen: generated images.
        num_real: at most this many real images; None: all of them.
        full: the whole real set, never mirrored; otherwise a seeded random subset, mirrored as the profile says.
        neighbours: k of precision and recall.
        per_image: non-flatness score with the density quantile taken per image instead of per four images.
        extractor: `inception`, `vgg16-torchvision` (precision and recall) or `tf_efficientnet_lite0`; None for the
            non-flatness score, which looks at depth only.
    """

    family: Family
    num_gen: int
    num_real: int | None = None
    full: bool = False
    neighbours: int = 3
    per_image: bool = False
    extractor: str | None = INCEPTION

    @property
    def name(self) -> str:
        """The canonical name."""
        prefix = _OFFLINE_PREFIX[self.family] if self.extractor == EFFLITE0 else self.family
        count = _label(self.num_gen)
        if self.family == "pr":
            count += f"{'' if count.endswith('k') else '_'}{self.neighbours}"
        suffix = "_full" if self.full else ""
        if self.family == "fid" and not self.full and self.num_real and self.num_real != self.num_gen:
            suffix = f"_{_label(self.num_real)}"
        return f"{prefix}{count}{suffix}{'_perimage' if self.per_image else ''}"

    @property
    def label(self) -> str:
        """Human name of the family; offline distances are never called FID."""
        label = _LABELS[self.family]
        return f"{label.replace(' Inception', '')} (efficientnet_lite0)" if self.extractor == EFFLITE0 else label

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
        return replace(self, num_gen=num_gen)

    def offline(self) -> MetricSpec:
        """The same question asked with EfficientNet-Lite0 features.

        Raises:
            UsageError: the Inception score has no offline counterpart.
        """
        if self.extractor in (None, EFFLITE0):
            return self
        if self.family == "is":
            raise UsageError("The Inception score is defined by the Inception classifier: it has no offline stand-in.")
        return replace(self, extractor=EFFLITE0)


def parse_metric(name: str) -> MetricSpec:
    """Understand a metric name; several spellings of one question (`fid2048_full`) get its canonical name.

    Raises:
        UsageError: the name follows no known form, or asks for zero images.
    """
    for family, form in _FORMS.items():
        if match := re.fullmatch(form, name):
            spec = _build(family, match.groupdict())
            break
    else:
        raise UsageError(
            f"'{name}' is no metric. Known forms: fid50k_full, fid5k, fid5k_1k, kid50k_full, pr50k3_full, is50k, "
            "nfs256, fd_efflite0_50k_full, kd_efflite0_50k_full, pr_efflite0_50k3_full; any number of images."
        )
    if spec.num_gen < 1 or spec.num_real == 0 or spec.neighbours < 1:
        raise UsageError(f"Metric '{name}' asks for zero images: use a number of at least 1.")
    return spec


def _build(family: Family, parts: dict[str, str | None]) -> MetricSpec:
    num_gen, real = _count(parts["gen"] or ""), parts.get("real")
    num_real = _count(real) if real and real != "full" else num_gen
    return MetricSpec(
        family,
        num_gen,
        _FULL_LIMIT[family] if real == "full" else num_real if family in _FULL_LIMIT else None,
        full=real == "full",
        neighbours=int(parts.get("neighbours") or 3),
        per_image=parts.get("per_image") is not None,
        extractor=EFFLITE0 if parts.get("offline") else _default_extractor(family),
    )


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
    full = num_real is None and family in _FULL_LIMIT
    spec = MetricSpec(family, num_gen, num_real, full, neighbours, extractor=_default_extractor(family))
    return (spec.offline() if offline else spec).name


def larger_is_better(value_name: str) -> bool:
    """Direction of a value as it appears in results: distances fall, scores rise.

    Raises:
        UsageError: the value belongs to no known metric.
    """
    metric = re.sub(r"_(mean|std|precision|recall|entropy|clamped)$", "", value_name)
    return parse_metric(metric).family in ("pr", "is", "nfs")


def main_value(name: str) -> str:
    """The results key that ranks checkpoints for metric `name`: the name itself except for pr (…_precision) and is."""
    return parse_metric(name).main_value


def _count(text: str) -> int:
    if text == "2k":
        return 2048
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)


def _label(count: int) -> str:
    if count == 2048:
        return "2k"
    return f"{count // 1000}k" if count % 1000 == 0 and count != 2000 else str(count)


def _default_extractor(family: Family) -> str | None:
    return {"nfs": None, "pr": VGG16}.get(family, INCEPTION)
