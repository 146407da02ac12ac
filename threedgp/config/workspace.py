"""Where files live, so that every command works with no path.

data/<dataset>/images/         what the user brings, flat or one folder a class
data/<dataset>/selected/       photos kept by select
data/<dataset>/depth/          depth maps
data/<dataset>/merged/         photos beside their depth maps
data/<dataset>/<size>/         the training set: square images, *_depth.png, dataset.json, embeddings/
data/<dataset>/full-<size>/    the unselected set at that size: what FID is measured against
runs/<profile>-<number>/       config, checkpoints, metrics, logs, samples
renders/                       videos, grids, meshes
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from threedgp.errors import DataError, UsageError

ENVIRONMENT_VARIABLE = "THREEDGP_WORKSPACE"


@dataclass(frozen=True)
class Workspace:
    """A folder with data/, runs/ and renders/ in it; none of them need exist yet."""

    root: Path

    @classmethod
    def find(cls, path: Path | str | None = None) -> Workspace:
        """The given folder, else $THREEDGP_WORKSPACE, else the current directory.

        Raises:
            UsageError: the folder does not exist.
        """
        given = path or os.environ.get(ENVIRONMENT_VARIABLE)
        root = Path(given).expanduser() if given else Path.cwd()
        if not root.is_dir():
            source = "--workspace" if path else f"${ENVIRONMENT_VARIABLE}"
            raise UsageError(f"The workspace {root} ({source}) is not a folder. Create it or name another one.")
        return cls(root)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def renders(self) -> Path:
        return self.root / "renders"

    def datasets(self) -> list[str]:
        """Names of the data sets in the workspace, sorted."""
        if not self.data.is_dir():
            return []
        return sorted(path.name for path in self.data.iterdir() if path.is_dir() and not path.name.startswith("."))

    def dataset(self, name: str | None = None) -> DatasetFolder:
        """The named data set, or the only one there is.

        Raises:
            DataError: none, several, or no such data set.
        """
        names = self.datasets()
        if name is not None:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else f" Put photos into {self.data / name / 'images'}."
                raise DataError(f"There is no data set '{name}' in {self.data}.{hint}")
            return DatasetFolder(self.data / name)
        if not names:
            raise DataError(
                f"There is no data set in {self.data}. Put photos into {self.data / 'NAME' / 'images'}, "
                "or make a small demo set with: 3dgp data demo"
            )
        if len(names) > 1:
            raise UsageError(f"There are several data sets in {self.data}: {', '.join(names)}. Choose with --dataset.")
        return DatasetFolder(self.data / names[0])


@dataclass(frozen=True)
class DatasetFolder:
    """One data set's folder with a sub-folder for each stage."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def selected(self) -> Path:
        return self.root / "selected"

    @property
    def depth(self) -> Path:
        return self.root / "depth"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    def resized(self, size: int) -> Path:
        """The training set at this side in pixels."""
        return self.root / str(size)

    def full(self, size: int) -> Path:
        """The unselected set at this side in pixels."""
        return self.root / f"full-{size}"

    def sizes(self) -> list[int]:
        """Sides of the training sets made so far, ascending."""
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdigit() and path.is_dir())

    def photos(self) -> Path:
        """Photos as selected, else as brought: the input of depth and merge."""
        return self._newest(self.selected, self.images)

    def prepared(self) -> Path:
        """Photos with depth, else selected, else as brought: the input of resize."""
        return self._newest(self.merged, self.selected, self.images)

    def _newest(self, *folders: Path) -> Path:
        for folder in folders:
            if folder.is_dir():
                return folder
        raise DataError(f"The data set {self.name} has no photos: put them into {self.images}.")
