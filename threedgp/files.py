"""Files that appear whole or not at all: atomic writes, checksums, JSON and JSON lines."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from threedgp.errors import DataError
from threedgp.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    import torch

TEMPORARY_MARK = ".tmp-"  # every unfinished file has this in its name; discovery skips names that start with a dot


def _mode_of_new_files() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


NEW_FILE_MODE = _mode_of_new_files()  # what the user's umask wants; some libraries make files private on their own


def temporary_path(path: Path) -> Path:
    """A fresh hidden name beside `path`, so that the final rename stays inside one file system.

    The ending is kept because encoders choose the format by it. A very long name is shortened to stay within the
    255 bytes that file systems allow.
    """
    stem = path.stem.encode()[:150].decode(errors="ignore")
    return path.with_name(f".{stem}{TEMPORARY_MARK}{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def atomic_path(path: Path | str, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path; on success rename it to `path`, on any error (Ctrl-C too) remove it.

    Args:
        path: the final name; missing parent folders are created.
        durable: fsync file and folder, so that the file survives a power cut (checkpoints).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        if durable:
            fsync(temporary)
        os.replace(temporary, path)
        if durable:
            fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_open(path: Path | str, mode: str = "wb", *, durable: bool = False, **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary file for writing that becomes `path` when the block ends without an error."""
    with atomic_path(path, durable=durable) as temporary, open(temporary, mode, **kwargs) as file:
        yield file


_done_without: set[str] = set()


@contextmanager
def best_effort(what: str, progress: Progress = NULL_PROGRESS) -> Iterator[None]:
    """Write a convenience: where that fails, the work goes on without it.

    Caches, histories, plots and records beside results must neither end work nor cost a computed result.

    Args:
        what: the thing as the subject of a sentence, such as "Statistics of real images".
        progress: told the first time that this thing could not be written.
    """
    try:
        yield
    except OSError as error:
        if what not in _done_without:
            _done_without.add(what)
            where = f" ({error.filename})" if error.filename else ""
            progress.note(f"{what} cannot be kept: {error.strerror or error}{where}. The work goes on without.")


def cache_folder(part: str) -> Path:
    """Where a kind of thing is kept between commands: $THREEDGP_CACHE/PART, by default ~/.cache/threedgp/PART."""
    root = os.environ.get("THREEDGP_CACHE")
    try:
        return (Path(root).expanduser() if root else Path.home() / ".cache" / "threedgp") / part
    except RuntimeError:  # an account without a home: every attempt to write there is an OSError
        return Path(os.devnull) / part


def write_tensors(path: Path | str, tensors: dict[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors by atomic rename.

    Raises:
        OSError: they cannot be written.
    """
    from safetensors import SafetensorError  # torch: not needed for most files
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        temporary.chmod(NEW_FILE_MODE)


class IrregularFileError(DataError):
    """A pipe or device where a file was expected."""


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file from outside for reading, if it is a regular one.

    A pipe would make us wait for ever, a device such as /dev/zero never end.

    Raises:
        IrregularFileError: it is no regular file.
        OSError: it is missing or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        raise IrregularFileError(f"{path} is not a regular file.")
    return open(descriptor, "rb")


def write_json(path: Path | str, value: Any, *, durable: bool = False, indent: int | None = 1) -> None:
    """Write `value` as UTF-8 JSON by atomic rename."""
    with atomic_open(path, "w", encoding="utf-8", durable=durable) as file:
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.write("\n")


def read_bytes(path: Path | str, *, limit: int = 1 << 30) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        DataError: it is larger, or no regular file.
        OSError: it is missing or may not be read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path} is larger than {limit / 1e6:g} MB, which no such file should be.")
    return content


def decode_text(data: bytes) -> str:
    """Text from any editor: UTF-8 and UTF-16 with or without a byte order mark, else Windows' Western code page."""
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def parse_json(text: str | bytes) -> Any:
    """JSON of any origin as values; a byte order mark is passed over.

    Raises:
        ValueError: it is no JSON, or one that Python cannot hold (nested thousands deep, numbers of thousands of
            digits).
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode(json.detect_encoding(text)))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a missing or damaged one raises `DataError` that names it."""
    try:
        return parse_json(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder instead of a JSON file.") from None
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}). Delete it and run the step that wrote it again."
        ) from None


def append_json_line(path: Path | str, value: Any) -> None:
    """Append one object to a JSON-lines file; a half-written last line of a killed process is closed first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, ensure_ascii=False) + "\n"
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def read_json_lines(path: Path | str) -> list[Any]:
    """All whole lines of a JSON-lines file (missing file: none); a line cut by a crash is passed over."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    values = []
    for line in content.split(b"\n"):  # not str.splitlines: strings may hold U+2028 and U+0085 as they are
        try:
            values.append(parse_json(line))
        except ValueError:
            continue
    return values


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
