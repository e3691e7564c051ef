"""Modules as archives: those that come as one, and those that are sent to Ray's workers."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from hubretrain.errors import ModuleError, WorkerError, first_line

SUFFIXES = (".tar.gz", ".tgz", ".tar")
MAX_BYTES = 16 * 2**30  # the largest module of the catalogue has 3.5 GB


def unpack_module(archive: Path, folder: Path) -> None:
    """Unpack an archive that holds one SavedModel, at its root or in a folder of its own.

    Only plain files and folders are taken, and none outside of `folder`.

    Raises:
        ModuleError: The archive is missing, damaged, too large, or holds anything else.
    """
    aside = folder.with_name(f"{folder.name}.unpacked")
    try:
        _extract(archive, aside)
    except FileNotFoundError as error:
        raise ModuleError(f"{archive} does not exist; expected an archive of a module.") from error
    except tarfile.OutsideDestinationError as error:
        raise ModuleError(
            f"{archive} holds {error.tarinfo.name}, which would be written outside of the "
            "folder; it is not unpacked."
        ) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ModuleError(
            f"{archive} cannot be unpacked ({first_line(error)}); it is truncated or "
            "damaged, or no tar archive."
        ) from error
    roots = [aside, *(p for p in sorted(aside.iterdir()) if p.is_dir())] if aside.is_dir() else []
    modules = [root for root in roots if (root / "saved_model.pb").is_file()]
    if len(modules) != 1:
        raise ModuleError(
            f"{archive} holds {len(modules) or 'no'} saved_model.pb; expected one module."
        )
    modules[0].rename(folder)


def _extract(archive: Path, folder: Path) -> None:
    """Extract plain files and folders, at most `MAX_BYTES` of them."""
    n_bytes = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise ModuleError(
                    f"{archive} holds {member.name}, which is no plain file; links and devices "
                    "are not unpacked."
                )
            n_bytes += member.size
            if n_bytes > MAX_BYTES:
                raise ModuleError(
                    f"{archive} unpacks to more than {MAX_BYTES / 2**30:g} GiB; that is no module."
                )
            tar.extract(member, folder, filter="data")


def pack_folder(folder: Path) -> bytes:
    """Return the folder's files as a tar archive: the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                # A bare header: times, owner and mode would differ from machine to machine.
                header = tarfile.TarInfo(path.relative_to(folder).as_posix())
                header.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(header, file)
    return buffer.getvalue()


def unpack_folder(archive: bytes) -> Path:
    """Return a temporary folder with the files that `pack_folder` took.

    It is unpacked once per machine, and again where files have been lost.

    Raises:
        WorkerError: Another user owns the temporary folder.
    """
    home = Path(tempfile.gettempdir()) / f"hubretrain-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise WorkerError(f"{home}/ belongs to another user; remove it, or set TMPDIR.")
    folder = home / hashlib.sha256(archive).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        expected = {member.name: member.size for member in tar}
        if _sizes(folder) == expected:
            return folder
        aside = Path(tempfile.mkdtemp(dir=home))
        try:
            tar.extractall(aside, filter="data")
            if _sizes(folder) != expected:
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
        except OSError:
            if _sizes(folder) != expected:  # else another worker was faster
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()
    }
