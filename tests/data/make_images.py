"""Small sets of pictures for the data stages' tests: `from tests.data.make_images import make_set`."""

from pathlib import Path

import numpy as np

from threedgp.data.images import write_depth, write_image


def picture(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    """A smooth colourful picture, uint8 [H, W, 3], another one for each seed."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (random.rand(2) * 3 @ [x.ravel(), y.ravel()] + random.rand())) for _ in range(3)]
    return (np.stack(waves, -1).reshape(height, width, 3) * 110 + 128).astype(np.uint8)


def depth_map(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    """A depth map with edges, uint16 [H, W]."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    near = (x - random.randint(width)) ** 2 + (y - random.randint(height)) ** 2 < 100
    return np.where(near, 3000, 20000 + y * 900).astype(np.uint16)


def make_set(root: Path, names: list[str], depth: bool = False, **size: int) -> Path:
    """Write a picture (and depth map) under every name."""
    for seed, name in enumerate(names):
        write_image(root / name, picture(seed, **size))
        if depth:
            write_depth((root / name).with_name(Path(name).stem + "_depth.png"), depth_map(seed, **size))
    return root
