"""Where pictures come from: a folder or a zip, listed in one stable order and read file by file."""

from __future__ import annotations

import copy
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from threedgp.errors import DataError
from threedgp.files import IrregularFileError, open_regular, parse_json

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
DEPTH_ENDING = "_depth.png"
DEPTH_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
MANIFEST = "manifest.json"
DATASET_JSON = "dataset.json"
OWN_NAMES = frozenset({MANIFEST, DATASET_JSON, "classes.json", "scores.csv"})  # in a stage's output
MAX_FILE_BYTES = 1 << 30
TOO_LARGE = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB"
UNREADABLE = "unreadable"  # the stamp of a file that is not there
MAX_NAME_BYTES = 255  # of one file or folder, in all common file systems
START_BYTES = 1 << 16
DEEPEST = 64  # folders inside each other: ends what links to one another could make of a few folders


def is_depth_name(name: str) -> bool:
    """True for a depth map as stages write it, `<stem>_depth.png`."""
    return name.endswith(DEPTH_ENDING)


def is_image_name(name: str) -> bool:
    """True for a name that discovery takes for an image: a known extension in any case, no dot in front.

    Depth maps are none, in whatever form merge knows (`<stem>_depth.tif`, `<stem>_DEPTH.PNG`).
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    is_depth = suffix in DEPTH_SUFFIXES and path.stem.lower().endswith("_depth")
    return suffix in IMAGE_SUFFIXES and not path.name.startswith(".") and not is_depth


def stem_of(name: str) -> str:
    """`a/b.c.jpg` -> `a/b.c`: the relative path without its last extension."""
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def depth_name_of(name: str) -> str:
    """The name of the depth map that belongs to an image: `a/b.jpg` -> `a/b_depth.png`."""
    return stem_of(name) + DEPTH_ENDING


def refused_names(names: list[str]) -> dict[str, str]:
    """{image: reason} for names that differ from an earlier one only in the extension: their depth maps would clash."""
    owner: dict[str, str] = {}
    return {
        name: f"it differs from {first} only in its extension; rename one of them"
        for name in names
        if (first := owner.setdefault(stem_of(name), name)) != name
    }


def class_of(name: str) -> str | None:
    """The first folder of a relative path, or None for an image that lies in the root."""
    return name.split("/", 1)[0] if "/" in name else None


def classes_of(names: list[str]) -> list[str]:
    """Sorted names of the classes (first folders) that occur."""
    return sorted({name.split("/", 1)[0] for name in names if "/" in name})


class ImageSource(ABC):
    """The pictures of a folder or zip, in the order of Unicode code points of their whole paths, `/` between folders.

    Attributes:
        root: the folder or archive.
        names: relative paths of all images, in order.
        depth_names: relative paths of all depth maps (`*_depth.png`), in order.
        problems: {path: reason} of files that look like images but can never be read or written.
        left_out: names of visible files that are neither, in order: what a stage passes over it can count and name.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.problems: dict[str, str] = {}
        self.names: list[str] = []
        self.depth_names: list[str] = []
        self.left_out: list[str] = []

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def read(self, name: str, count: int = -1) -> bytes:
        """The whole file, or its first `count` bytes. Raises `DataError` with the reason when it cannot be read."""

    @abstractmethod
    def stamp(self, name: str) -> str:
        """Another stamp means that the content may be another; `UNREADABLE` for a file that is not there."""

    def without_names(self) -> Self:
        """A copy that can only `read`: what is sent to worker processes with every batch of work."""
        light = copy.copy(self)
        light.root = self.root.absolute()
        light.problems, light.names, light.depth_names, light.left_out = {}, [], [], []
        return light

    def _sort(self, found: list[str]) -> None:
        for name in found:
            if is_depth_name(name):
                self.depth_names.append(name)
            elif not is_image_name(name):
                self.left_out.append(name)
            elif class_of(name) in OWN_NAMES:
                self.problems[name] = (
                    f"its folder is called {class_of(name)} like a file that the stages write; rename the folder"
                )
            elif len(depth_name_of(name).rsplit("/", 1)[-1].encode()) > MAX_NAME_BYTES:
                self.problems[name] = "its name is too long for a depth map beside it; shorten it"
            else:
                self.names.append(name)


class FolderSource(ImageSource):
    """The pictures of a folder and its sub-folders.

    Symbolic links are followed, to folders too, but not to a folder that they lie in (so a loop of links ends). Names
    that start with a dot are passed over.
    """

    def __init__(self, root: Path | str):
        super().__init__(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder. Give a folder (or zip) with images.")
        self._sort(list_files(self.root, self.problems))

    def __contains__(self, name: str) -> bool:
        return (self.root / name).is_file()

    def stamp(self, name: str) -> str:
        return file_stamp(self._path(name))

    def read(self, name: str, count: int = -1) -> bytes:
        return read_file(self._path(name), count)

    def _path(self, name: str) -> Path:
        """A name with `..` (a depth map beside the folder) is meant as it reads, even where the folder is a link."""
        path = self.root / name
        return Path(os.path.normpath(path.absolute())) if name.startswith("../") else path


class ZipSource(ImageSource):
    """The pictures of a zip archive.

    One top folder that holds everything is taken off the names. The object can be sent to other processes: each opens
    the archive for itself.
    """

    def __init__(self, path: Path | str):
        super().__init__(path)
        self.__setstate__({})
        try:
            entries = [info for info in self._archive().infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.root} cannot be opened as a zip archive ({error}).") from None
        self._entries: dict[str, str] = {}
        # Some Windows programs write backslashes between folders.
        self._prefix = _common_folder([info.filename.replace("\\", "/") for info in entries])
        for info in entries:
            name = info.filename.replace("\\", "/").removeprefix(self._prefix)
            if any(part.startswith(".") or not part for part in name.split("/")):
                continue
            if name in self._entries:
                self.problems[name] = "the archive holds this name twice"
            self._entries[name] = info.filename
        self._sort(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_handle", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self._lock = threading.Lock()

    def without_names(self) -> Self:
        light = super().without_names()
        light._entries = {n: f for n, f in self._entries.items() if f != self._prefix + n}
        return light

    def _info(self, name: str) -> zipfile.ZipInfo:
        return self._archive().getinfo(self._entries.get(name, self._prefix + name))

    def stamp(self, name: str) -> str:
        try:
            info = self._info(name)
        except KeyError:
            return UNREADABLE
        return f"{info.file_size}-{info.CRC:08x}"

    def read(self, name: str, count: int = -1) -> bytes:
        try:
            info = self._info(name)
            if count < 0 and info.file_size > MAX_FILE_BYTES:
                raise DataError(TOO_LARGE)
            with self._archive().open(info) as entry:
                return entry.read(count)
        except DataError:
            raise
        except KeyError:
            raise DataError("is not in the archive") from None
        except (OSError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot be read from the archive ({error})") from None
        except Exception as error:  # zlib.error and kin of a damaged entry
            raise DataError(f"cannot be unpacked ({error})") from None

    def _archive(self) -> zipfile.ZipFile:
        """This process's own handle: a forked child must not share the parent's file position."""
        with self._lock:
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = (os.getpid(), zipfile.ZipFile(self.root))
            return self._handle[1]


def open_source(path: Path | str, *, allow_empty: bool = False) -> ImageSource:
    """Open a folder or `.zip` of images.

    Raises:
        DataError: it does not exist, is neither, is the unfinished output of a stage, or holds no image (unless
            `allow_empty`).
    """
    path = Path(path)
    if path.is_dir():
        require_finished(path)
        source: ImageSource = FolderSource(path)
    elif path.is_file():
        source = ZipSource(path)
    else:
        raise DataError(f"{path} does not exist. Give a folder (or zip) with images.")
    if not source.names and not allow_empty:
        kinds = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise DataError(f"{path} holds no images. Put files of these kinds there (sub-folders are classes): {kinds}")
    return source


def embeddings_folder(path: Path) -> Path:
    """Where the embeddings of a set lie: in its folder, or in `<stem>-embeddings` beside a zip."""
    return path / "embeddings" if path.is_dir() else path.with_name(f"{path.stem}-embeddings")


def file_stamp(path: Path) -> str:
    """Size, times and inode of a file: the same stamp means the same content, another need not mean another.

    The change time and the inode are what tells a file from another one that was put in its place with its date.
    """
    try:
        status = path.stat()
    except OSError:
        return UNREADABLE
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that a data stage left in its output; None for a folder that no stage wrote."""
    try:
        content = parse_json(read_file(folder / MANIFEST))
    except (DataError, ValueError):
        return None
    return content if isinstance(content, dict) and "stage" in content else None


def require_finished(folder: Path) -> None:
    """Raise `DataError` when a folder is the output of a stage that was stopped before its end."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("complete") is False:
        raise DataError(f"{folder} is unfinished: run '3dgp data {manifest['stage']}' again first.")


def read_file(path: Path, count: int = -1) -> bytes:
    """The whole file, or its first `count` bytes. Raises `DataError` with the reason when that is impossible."""
    try:
        with open_regular(path) as file:
            if count >= 0 or os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES:
                return file.read(count)
        raise DataError(TOO_LARGE)
    except IrregularFileError:
        raise DataError("not a regular file") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})") from None


def list_files(root: Path, problems: dict[str, str]) -> list[str]:
    """Relative paths (`/` between folders) of the visible files below `root`, in order.

    What can be seen but not used (a pipe, an unreadable folder, a name that is not UTF-8) goes into `problems`.
    """
    found: list[str] = []
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]  # and the folders each lies in
    while folders:
        folder, above = folders.pop()
        try:
            status = os.stat(root / folder)
            here = above | {(status.st_dev, status.st_ino)}
            if len(here) == len(above) or len(above) > DEEPEST:
                continue  # a link to a folder that it lies in
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = folder + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append((name + "/", here))
                    elif _printable(name) != name:
                        problems[_printable(name)] = "its name is not valid UTF-8; rename it"
                    elif entry.is_file() or entry.is_symlink():  # a dangling link is reported when it is read
                        found.append(name)
                    elif is_image_name(name) or is_depth_name(name):
                        problems[name] = "not a regular file"
        except OSError as error:
            problems[_printable(folder) or "."] = f"the folder cannot be read ({error.strerror or error})"
    return sorted(found)


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _common_folder(names: list[str]) -> str:
    """`top/` when packing has put one folder around an archive: all images lie in folders of it, or the labels in it.

    Any other single folder with images right inside it is a class, as it is where folders are read.
    """
    images = [name for name in names if is_image_name(name)]
    tops = {name.split("/")[0] for name in images}
    if len(tops) != 1 or DATASET_JSON in names:
        return ""
    top = tops.pop() + "/"
    return top if top + DATASET_JSON in names or all(name.count("/") > 1 for name in images) else ""
