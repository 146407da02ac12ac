"""One of several processes of `3dgp data depth --gpus N`, started by `threedgp.data.shards`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threedgp.data.depth import estimate
from threedgp.data.journal import Journal
from threedgp.data.shards import shard_main
from threedgp.data.source import open_source
from threedgp.data.stage import plain_os_errors
from threedgp.pretrained.depth_estimators import EstimatorSpec


def work(job: dict[str, Any], rank: int, world_size: int) -> Iterator[dict[str, Any]]:
    """Make this process's share of the maps."""
    device = job["device"] if job["device"] == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}"
    photos = open_source(job["source"])
    estimator = EstimatorSpec(**job["spec"]).build(device)
    with plain_os_errors():
        for outcome in estimate(
            photos,
            job["names"],
            Journal.load(Path(job["target"])),
            estimator,
            job["batch_size"],
            job["colormap"],
            job["jobs"],
            rank,
            world_size,
        ):
            yield outcome._asdict()


if __name__ == "__main__":
    shard_main(work)
