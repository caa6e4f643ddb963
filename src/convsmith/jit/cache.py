"""The kernel cache: finished builds on disk, each in a folder named by the hash of what made it.

    <root>/entries/<name>_<hash>/   a finished build: the artifact, its sources and entry.json
    <root>/building/                builds under way, and what killed ones left behind
    <root>/failed/<name>_<hash>/    sources a compiler refused, kept so that its command runs again
    <root>/locks/<name>_<hash>      held (flock) while that entry is being built

``<root>`` is ``$CONVSMITH_CACHE``, else ``$XDG_CACHE_HOME/convsmith``, else
``~/.cache/convsmith``. A build happens in a folder of its own and is published by one rename, so
an entry is either whole or absent; and its artifact is checked against the size and hash in
``entry.json`` before every use, so one that was damaged later is built again. Reading an entry
takes no lock and writes nothing.

What is in the cache is loaded into the process, so a cache that another user could write to is
refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from convsmith.errors import CacheError, CompilationDisabledError

LOCK_TIMEOUT_SECONDS = 300.0
_LOCK_POLL_SECONDS = 0.05

_METADATA = "entry.json"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ELSEWHERE = "set CONVSMITH_CACHE to a folder on a local disk that you own and can write to"


@dataclass(frozen=True)
class Build:
    """What a builder leaves in the folder it was given.

    Attributes:
        name: the kernel's name, without the hash.
        architecture: what it was built for: "sm_90", or "simulator".
        artifact: the file in the folder that will be loaded or run.
        command: what built it, one command a line, as run in the entry's folder.
        details: anything else worth recording, such as versions of the compilers.
    """

    name: str
    architecture: str
    artifact: str
    command: str
    details: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One finished build in the cache.

    Attributes:
        build: what the builder said of it.
        path: the entry's folder.
        size: of the artifact, in bytes.
        sha256: of the artifact, in hexadecimal digits.
        built_at: seconds since the epoch.
        seconds: how long the build took.
    """

    build: Build
    path: Path
    size: int
    sha256: str
    built_at: float
    seconds: float

    @property
    def artifact(self) -> Path:
        """The file to load or run."""
        return self.path / self.build.artifact

    @property
    def age(self) -> float:
        """Seconds since it was built."""
        return time.time() - self.built_at


def root() -> Path:
    """The cache's folder, which need not exist yet."""
    if chosen := os.environ.get("CONVSMITH_CACHE"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):
        return Path(shared) / "convsmith"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise CacheError(f"No home folder for the kernel cache was found.\nRemedy: {_ELSEWHERE}.")
    return Path(home) / ".cache" / "convsmith"


def compiling_disabled() -> bool:
    """Whether CONVSMITH_NO_COMPILE forbids building what is not in the cache."""
    return os.environ.get("CONVSMITH_NO_COMPILE", "") not in ("", "0")


def digest(*parts: str) -> str:
    """16 hexadecimal digits of the SHA-256 over ``parts``; no two lists of parts run together."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def find(key: str) -> Entry | None:
    """The entry of that key (``<name>_<hash>``); None if it is absent or damaged.

    Raises:
        CacheError: another user could have written it, or it cannot be read.
    """
    folder = root() / "entries" / key
    with _explained(f"The kernel cache entry {folder} cannot be read"):
        try:
            if not _is_private_folder(root(), root() / "entries", folder):
                return None
            entry = _read(folder)
            if entry is None or not _is_private_file(entry.artifact):
                return None
            content = entry.artifact.read_bytes()
        except FileNotFoundError:  # another process removes or replaces it at this moment
            return None
    return entry if hashlib.sha256(content).hexdigest() == entry.sha256 else None


def find_newest(prefix: str) -> Entry | None:
    """The newest undamaged entry whose key begins with ``prefix``."""
    for entry in sorted(list_entries(prefix), key=lambda entry: entry.age):
        if found := find(entry.path.name):
            return found
    return None


def find_or_build(key: str, build: Callable[[Path], Build]) -> Entry:
    """The entry of that key, built now if it is absent or damaged.

    Of several processes and threads that ask at once, one builds and the others wait for it.

    Args:
        key: ``<name>_<hash>``; the hash covers everything that can change the artifact.
        build: fills the folder it is given with exactly what the entry shall hold.

    Raises:
        CompilationDisabledError: the entry is absent and CONVSMITH_NO_COMPILE is set.
        CacheError: the cache is unsafe, read-only or full, or its lock was not to be had.
    """
    if entry := find(key):
        return entry
    if compiling_disabled():
        raise disabled(key)
    with _explained(f"The kernel cache {root()} cannot be written"):
        for folder in (root(), *(root() / part for part in ("entries", "building", "locks"))):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_unless_private(folder)
        with _lock(key, LOCK_TIMEOUT_SECONDS):
            return find(key) or _build_and_publish(key, build)


def keep_failed(key: str, folder: Path) -> Path:
    """Moves the sources in ``folder`` to where they stay until ``key`` fails again or `clear`."""
    kept = root() / "failed" / key
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    return folder.rename(kept)


def disabled(key: str) -> CompilationDisabledError:
    """The error for an entry that is absent where nothing may be compiled."""
    return CompilationDisabledError(
        f"{key} is not in the kernel cache {root()}, and CONVSMITH_NO_COMPILE is set.\n"
        "Remedy: unset it, or run the same calls once where compiling is allowed and bring that "
        "cache here."
    )


def list_entries(prefix: str = "") -> list[Entry]:
    """Every finished build whose key begins with ``prefix``, by name.

    Their artifacts are not checked; `find` does that.
    """
    entries = root() / "entries"
    with _explained(f"The kernel cache {root()} cannot be read"):
        if not _is_private_folder(root(), entries):
            return []
        found = [_read(folder) for folder in sorted(entries.glob(f"{prefix}*"))]
    return [entry for entry in found if entry is not None]


def clear() -> list[Path]:
    """Empties the cache, but for what is being built at this moment; returns what it removed."""
    removed = []
    with _explained(f"The kernel cache {root()} cannot be emptied"):
        if not _is_private_folder(root()):
            return []
        (root() / "locks").mkdir(mode=0o700, exist_ok=True)
        for part in ("entries", "building", "failed"):
            for folder in sorted((root() / part).glob("*")):
                with _lock_if_free(_key_of(folder)) as is_free:
                    if is_free:
                        shutil.rmtree(folder)
                        removed.append(folder)
    return removed


def _key_of(folder: Path) -> str:
    """The key whose lock guards a folder of entries/, failed/ or building/ (there, key.random)."""
    return folder.name.partition(".")[0]


def _read(folder: Path) -> Entry | None:
    """The entry a folder says it holds, if what it says is whole."""
    try:
        record = json.loads((folder / _METADATA).read_text())
        return Entry(Build(**record.pop("build")), folder, **record)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _build_and_publish(key: str, build: Callable[[Path], Build]) -> Entry:
    """Builds in a fresh folder and renames it into place; the caller holds the lock of ``key``."""
    _remove_leftovers(key)
    # The name is fresh each time: load_inline skips a build whose folder it has seen before.
    folder = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=root() / "building"))
    try:
        start = time.monotonic()
        built = build(folder)
        artifact = folder / built.artifact
        record = {
            "build": asdict(built),
            "size": artifact.stat().st_size,
            "sha256": hashlib.sha256(artifact.read_bytes()).hexdigest(),
            "built_at": time.time(),
            "seconds": round(time.monotonic() - start, 3),
        }
        (folder / _METADATA).write_text(json.dumps(record, indent=2) + "\n")
        for file in folder.iterdir():
            # A linker follows the umask, which may let the user's group write.
            file.chmod(file.stat().st_mode & ~_OTHERS_MAY_WRITE)
        published = root() / "entries" / key
        if published.exists():
            # Damaged, or find() would have returned it. It goes the way of a leftover.
            published.rename(tempfile.mkdtemp(prefix=f"{key}.", dir=root() / "building"))
        folder.rename(published)
    finally:
        _remove_leftovers(key)
    entry = find(key)
    if entry is None:
        raise CacheError(
            f"{published} was damaged as soon as it was written.\n"
            f"Remedy: check the disk, or {_ELSEWHERE}."
        )
    return entry


def _remove_leftovers(key: str) -> None:
    """Removes what builds of ``key``, whose lock is held, and killed builds of others left."""
    for folder in (root() / "building").iterdir():
        if _key_of(folder) == key:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            with _lock_if_free(_key_of(folder)) as is_free:
                if is_free:
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(key: str, timeout: float) -> Iterator[None]:
    """Holds the lock of one entry. The system releases it when its holder dies, however it dies."""
    deadline = time.monotonic() + timeout
    while (descriptor := _try_lock(key)) is None:
        if time.monotonic() >= deadline:
            path = root() / "locks" / key
            raise CacheError(
                f"{key} has been locked for {timeout:.0f} s by {_holder(path)}, which is still "
                "compiling it or hangs.\n"
                f"Remedy: end that process, or {_ELSEWHERE}. The lock is {path}."
            )
        time.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        _unlock(key, descriptor)


@contextlib.contextmanager
def _lock_if_free(key: str) -> Iterator[bool]:
    """Holds the lock of one entry and yields True, or yields False if another has it."""
    descriptor = _try_lock(key)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _unlock(key, descriptor)


def _try_lock(key: str) -> int | None:
    """The descriptor that holds the lock of an entry, or None if another has it."""
    path = root() / "locks" / key
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed the file between our open and our lock.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _unlock(key: str, descriptor: int) -> None:
    """Releases a lock; explicitly, because a forked child may have a copy of the descriptor."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(root() / "locks" / key)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _holder(lock: Path) -> str:
    """Who holds a lock, as its holder wrote it there."""
    with contextlib.suppress(OSError):
        if text := lock.read_text():
            return text
    return "another process"


def _is_private_folder(*folders: Path) -> bool:
    """Whether all of them exist; those that do must be private."""
    for folder in folders:
        if not folder.is_dir():
            return False
        _refuse_unless_private(folder)
    return True


def _is_private_file(file: Path) -> bool:
    """Whether it exists; if it does it must be private."""
    if not file.is_file():
        return False
    _refuse_unless_private(file)
    return True


def _refuse_unless_private(path: Path) -> None:
    """Raises CacheError if anyone but this user and root owns ``path`` or may write to it."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise CacheError(
            f"{path} belongs to user {status.st_uid}, who could have you run any code.\n"
            f"Remedy: {_ELSEWHERE}."
        )
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise CacheError(
            f"{path} may be written by other users (mode {stat.S_IMODE(status.st_mode):04o}), who "
            "could have you run any code.\n"
            f"Remedy: if you trust what is in it, chmod -R go-w {root()}; otherwise {_ELSEWHERE}."
        )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns an OSError into a CacheError that says ``what`` failed, why, and what to do."""
    try:
        yield
    except OSError as error:
        reason = f"{what}: {error.strerror or error}"
        if error.filename is not None:
            reason += f" ({os.fspath(error.filename)})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"free some space (convsmith cache clear), or {_ELSEWHERE}"
        else:
            remedy = _ELSEWHERE
        raise CacheError(f"{reason}.\nRemedy: {remedy}.") from error
