"""`3dgp data embed`: the image features that the discriminator learns to predict, one row per training image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from threedgp.data.features import compute_features, find_or_build
from threedgp.data.source import open_source
from threedgp.data.stage import Policy, Stage
from threedgp.errors import UsageError
from threedgp.pretrained.names import canonical_name
from threedgp.progress import NULL_PROGRESS

if TYPE_CHECKING:
    from typing_extensions import Unpack


def embeddings_path(output: Path | str, model: str) -> Path:
    """Where the embeddings of a model lie: `<output>/<model>.memmap`, e.g. `resnet50.memmap`."""
    return Path(output) / f"{canonical_name(model).replace('/', '_')}.memmap"


def run_embed(
    source: Path | str,
    output: Path | str,
    *,
    model: str = "resnet50",
    weights: Path | str | None = None,
    download: bool = False,
    allow_unverified: bool = False,
    device: str | None = None,
    batch_size: int = 32,
    **policy: Unpack[Policy],
) -> Stage:
    """Write `<model>.memmap`, `<model>_desc.json` and `<model>_manifest.json` for all images of a folder or zip.

    Nothing is computed if the files are there and the images have not changed. A killed run continues.

    Args:
        source: the resized set.
        output: folder of the embeddings; may lie inside the set.
        model: "resnet50" (weights resnet50.ram_in1k), "tf_efficientnet_lite0" (offline), "inception" or a timm model.
        batch_size: images at a time; rows may differ in the last digits between batch sizes.

    Raises:
        UsageError: unknown model.
        WeightsError: its weights are missing; nothing has been written.
        DataError: no image, or too many broken ones.
    """
    if batch_size < 1:
        raise UsageError(f"The batch must hold at least 1 image, not {batch_size}.")
    images, path = open_source(source), embeddings_path(output, model)
    found = find_or_build(
        images, path, model, weights, device=device, download=download, allow_unverified=allow_unverified,
        progress=policy.get("progress", NULL_PROGRESS),
    )  # fmt: skip
    manifest = f"{path.stem}_manifest.json"
    stage = Stage("embed", images, Path(output), {}, **policy, manifest=manifest)
    stage.claim()
    stage.skip_problems()
    label = f"Embedding with {canonical_name(model)}"
    table = compute_features(stage, path, found, batch_size=batch_size, label=label)
    stage.arguments = table.identity
    stage.extra = {"embeddings": path.name, "dim": table.dim}
    stage.images = len(table.names)
    stage.files = dict.fromkeys(table.names, path.name)
    return stage.finish(prune_stale=False)
