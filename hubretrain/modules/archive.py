"""Folders as archives: for a machine that has not got one, and modules that come as one."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from hubretrain.errors import ModuleError, WorkerError

SUFFIXES = (".tar.gz", ".tgz", ".tar")
MOST_BYTES = 16 * 2**30  # the largest module of the catalogue has 3.5 GB


def unpack_module(archive: Path, folder: Path) -> None:
    """Unpacks an archive that holds one SavedModel, at its root or in a folder of its own.

    Only plain files and folders are taken, and none outside of `folder`.

    Raises:
        ModuleError: The archive is missing, damaged, too large, or holds anything else.
    """
    aside = folder.with_name(f"{folder.name}.unpacked")
    n_bytes = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise ModuleError(
                        f"{archive} holds {member.name}, which is no plain file; links and devices "
                        "are not unpacked."
                    )
                n_bytes += member.size
                if n_bytes > MOST_BYTES:
                    raise ModuleError(
                        f"{archive} unpacks to more than {MOST_BYTES / 2**30:g} GiB; that is no "
                        "module."
                    )
                tar.extract(member, aside, filter="data")
    except FileNotFoundError as error:
        raise ModuleError(f"{archive} does not exist; expected an archive of a module.") from error
    except tarfile.OutsideDestinationError as error:
        raise ModuleError(
            f"{archive} holds {error.tarinfo.name}, which would be written outside of the "
            "folder; it is not unpacked."
        ) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ModuleError(
            f"{archive} cannot be unpacked ({str(error).rstrip('. ')}); it is truncated or "
            "damaged, or no tar archive."
        ) from error
    roots = [aside, *(p for p in sorted(aside.iterdir()) if p.is_dir())] if aside.is_dir() else []
    found = [root for root in roots if (root / "saved_model.pb").is_file()]
    if len(found) != 1:
        raise ModuleError(f"{archive} holds no saved_model.pb; expected one module.")
    found[0].rename(folder)


def pack_folder(folder: Path) -> bytes:
    """The folder's files as a tar archive: the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                facts = tarfile.TarInfo(path.relative_to(folder).as_posix())
                facts.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(facts, file)
    return buffer.getvalue()


def unpack_folder(data: bytes) -> Path:
    """A folder with what `pack_folder` took: once on each machine, anew where files were lost.

    Raises:
        WorkerError: Somebody else owns the place.
    """
    home = Path(tempfile.gettempdir()) / f"hubretrain-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise WorkerError(f"{home}/ belongs to somebody else; remove it, or set TMPDIR.")
    folder = home / hashlib.sha256(data).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        whole = {member.name: member.size for member in archive}
        if _files(folder) == whole:
            return folder
        aside = Path(tempfile.mkdtemp(dir=home))
        try:
            archive.extractall(aside, filter="data")
            if _files(folder) != whole:
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
        except OSError:
            if _files(folder) != whole:  # else another worker was quicker
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _files(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()
    }
