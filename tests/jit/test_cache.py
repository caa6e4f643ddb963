"""The kernel cache: whole or absent entries, one build at a time, every failure with its remedy."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from child_process import SOURCE, StartChild
from hypothesis import given
from hypothesis import strategies as st

from convsmith.errors import CacheError, CompilationDisabledError
from convsmith.jit import cache

KEY = "kernel_0123456789abcdef_fedcba9876543210"

# A child that builds KEY as argv says: how long it takes, and a file that gets a line per build.
BUILDER = """
import sys, time
from pathlib import Path
from convsmith.jit import cache

def build(folder):
    with open(sys.argv[3], "a") as log:
        log.write("built\\n")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "artifact").write_bytes(b"machine code")
    return cache.Build("kernel", "sm_90", "artifact", "make it", {})

print(cache.find_or_build(sys.argv[1], build).artifact.read_bytes())
"""


def build(folder: Path) -> cache.Build:
    """What a compiler does, in no time."""
    (folder / "artifact").write_bytes(b"machine code")
    (folder / "source").write_text("int main() {}")
    return cache.Build("kernel", "sm_90", "artifact", "make it", {"compiler": "1.0"})


def never_build(folder: Path) -> cache.Build:
    raise AssertionError("it is in the cache already")


def assert_nothing_is_left(folder: Path) -> None:
    assert list((folder / "building").iterdir()) == []
    assert list((folder / "locks").iterdir()) == []


# Where it is


def test_root_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSMITH_CACHE", "~/kernels")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.root() == Path("/home/somebody/kernels")
    monkeypatch.setenv("CONVSMITH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert cache.root() == Path("/var/caches/convsmith")
    # The XDG specification has relative paths ignored.
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert cache.root() == Path("/home/somebody/.cache/convsmith")


def test_no_home_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONVSMITH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user
    with pytest.raises(CacheError, match="Remedy: set CONVSMITH_CACHE"):
        cache.root()


# What is in it


def test_an_entry_is_built_once_and_then_found(cache_folder: Path) -> None:
    assert cache.find(KEY) is None
    assert not cache_folder.exists()  # looking writes nothing
    built = cache.find_or_build(KEY, build)
    assert cache.find_or_build(KEY, never_build) == built == cache.find(KEY)
    assert built.artifact.read_bytes() == b"machine code"
    assert built.path == cache_folder / "entries" / KEY
    assert {file.name for file in built.path.iterdir()} == {"artifact", "source", "entry.json"}
    assert built.build == cache.Build("kernel", "sm_90", "artifact", "make it", {"compiler": "1.0"})
    assert built.size == len(b"machine code")
    assert 0 <= built.age < 60
    assert cache_folder.stat().st_mode & 0o777 == 0o700
    assert_nothing_is_left(cache_folder)


def test_a_failed_build_leaves_nothing_and_hinders_nothing(cache_folder: Path) -> None:
    def fail(folder: Path) -> cache.Build:
        (folder / "half of it").write_text("...")
        raise RuntimeError("the compiler crashed")

    with pytest.raises(RuntimeError, match="the compiler crashed"):
        cache.find_or_build(KEY, fail)
    assert_nothing_is_left(cache_folder)
    assert cache.find(KEY) is None
    assert cache.find_or_build(KEY, build).artifact.exists()


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("artifact", truncate),
        ("artifact", flip_a_bit),
        ("artifact", empty),
        ("artifact", Path.unlink),
        ("entry.json", truncate),
        ("entry.json", empty),
        ("entry.json", Path.unlink),
    ],
)
def test_a_damaged_entry_is_built_again(
    cache_folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(cache.find_or_build(KEY, build).path / name)
    assert cache.find(KEY) is None
    rebuilt = cache.find_or_build(KEY, build)
    assert rebuilt.artifact.read_bytes() == b"machine code"
    assert cache.find(KEY) == rebuilt
    assert_nothing_is_left(cache_folder)


@pytest.mark.parametrize("record", ["null", "[]", "{}", '{"build": null}', '{"build": {}}'])
def test_a_record_of_another_shape_is_damage(cache_folder: Path, record: str) -> None:
    entry = cache.find_or_build(KEY, build)
    (entry.path / "entry.json").write_text(record)
    assert cache.find(KEY) is None
    assert cache.list_entries() == []
    assert cache.find_or_build(KEY, build).artifact.exists()


def test_a_build_that_is_damaged_at_once_is_an_error(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what was written must not be built on for ever."""
    monkeypatch.setattr(cache, "find", lambda key: None)
    with pytest.raises(CacheError, match=r"damaged as soon as it was written.\nRemedy: "):
        cache.find_or_build(KEY, build)


def test_an_entry_that_vanishes_while_it_is_read_is_absent(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another process replaces a damaged one."""
    cache.find_or_build(KEY, build)
    read = cache._read

    def read_and_remove(folder: Path) -> cache.Entry | None:
        entry = read(folder)
        (folder / "artifact").unlink()
        return entry

    monkeypatch.setattr(cache, "_read", read_and_remove)
    monkeypatch.setattr(cache, "_is_private_file", lambda file: True)
    assert cache.find(KEY) is None


def test_find_newest_takes_the_newest_that_is_whole(cache_folder: Path) -> None:
    for number in range(3):
        cache.find_or_build(f"kernel_aaaa_{number}", build)
        time.sleep(0.01)
    cache.find_or_build("kernel_bbbb_3", build)
    truncate(cache_folder / "entries" / "kernel_aaaa_2" / "artifact")
    found = cache.find_newest("kernel_aaaa_")
    assert found is not None
    assert found.path.name == "kernel_aaaa_1"
    assert cache.find_newest("kernel_cccc_") is None


def test_list_and_clear(cache_folder: Path) -> None:
    assert cache.list_entries() == []
    assert cache.clear() == []
    for name in ("one", "two"):
        cache.find_or_build(f"{name}_0", build)
    failed = cache_folder / "building" / "bad_0.x"
    failed.mkdir()
    assert cache.keep_failed("bad_0", failed) == cache_folder / "failed" / "bad_0"
    assert [entry.path.name for entry in cache.list_entries()] == ["one_0", "two_0"]
    assert [path.name for path in cache.clear()] == ["one_0", "two_0", "bad_0"]
    assert cache.list_entries() == []
    assert cache.find("one_0") is None


def test_clear_leaves_what_is_being_built(
    cache_folder: Path, tmp_path: Path, start_child: StartChild
) -> None:
    start_child(BUILDER, KEY, 600, tmp_path / "log").wait_for("building")
    cache.find_or_build("other_0", build)
    assert [path.name for path in cache.clear()] == ["other_0"]
    assert [path.name.split(".")[0] for path in (cache_folder / "building").iterdir()] == [KEY]


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_digest_tells_any_two_lists_apart(first: list[str], second: list[str]) -> None:
    assert (cache.digest(*first) == cache.digest(*second)) == (first == second)


# Several at once


def test_of_several_processes_one_builds(
    cache_folder: Path, tmp_path: Path, start_child: StartChild
) -> None:
    children = [start_child(BUILDER, KEY, 0.5, tmp_path / "log") for _ in range(3)]
    outputs = [child.output().splitlines()[-1] for child in children]
    assert outputs == ["b'machine code'"] * 3
    assert (tmp_path / "log").read_text() == "built\n"
    assert_nothing_is_left(cache_folder)


def test_of_several_threads_one_builds(cache_folder: Path) -> None:
    builds = []
    found = []

    def slow(folder: Path) -> cache.Build:
        builds.append(folder)
        time.sleep(0.2)
        return build(folder)

    threads = [
        threading.Thread(target=lambda: found.append(cache.find_or_build(KEY, slow)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(builds) == 1


def test_a_killed_build_is_taken_over_at_once(
    cache_folder: Path, tmp_path: Path, start_child: StartChild
) -> None:
    child = start_child(BUILDER, KEY, 600, tmp_path / "log")
    child.wait_for("building")
    child.kill()
    child.wait()
    assert list((cache_folder / "building").iterdir())
    assert list((cache_folder / "locks").iterdir())
    start = time.monotonic()
    assert cache.find_or_build(KEY, build).artifact.exists()
    assert time.monotonic() - start < 5
    assert_nothing_is_left(cache_folder)


def test_what_a_killed_build_of_another_kernel_left_goes_too(cache_folder: Path) -> None:
    cache.find_or_build(KEY, build)
    leftover = cache_folder / "building" / "other_0.abcdef"
    leftover.mkdir()
    cache.find_or_build("third_0", build)
    assert not leftover.exists()


def test_waiting_for_a_lock_ends_and_names_the_holder(
    cache_folder: Path, tmp_path: Path, start_child: StartChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start_child(BUILDER, KEY, 600, tmp_path / "log")
    child.wait_for("building")
    monkeypatch.setattr(cache, "LOCK_TIMEOUT_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(CacheError, match=f"process {child.pid} on .*\nRemedy: end that process"):
        cache.find_or_build(KEY, build)
    assert time.monotonic() - start < 5
    # Another kernel is not held up.
    assert cache.find_or_build("other_0", build).artifact.exists()


def test_a_lock_is_released_though_a_forked_child_has_its_descriptor(cache_folder: Path) -> None:
    """As a data loader's worker has, when it was forked during a build."""
    sleepers = []

    def fork_and_build(folder: Path) -> cache.Build:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
        locked = [fd for fd in descriptors if "locks" in _target(fd)]
        assert len(locked) == 1
        sleepers.append(subprocess.Popen(["sleep", "60"], pass_fds=locked))
        return build(folder)

    def _target(descriptor: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return ""

    cache.find_or_build(KEY, fork_and_build)
    try:
        (cache_folder / "entries" / KEY / "artifact").unlink()
        start = time.monotonic()
        cache.find_or_build(KEY, build)
        assert time.monotonic() - start < 5
    finally:
        sleepers[0].kill()
        sleepers[0].wait()


# What it refuses


def test_nothing_is_built_where_that_is_forbidden(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.find_or_build(KEY, build)
    monkeypatch.setenv("CONVSMITH_NO_COMPILE", "1")
    assert cache.find_or_build(KEY, never_build).artifact.exists()
    with pytest.raises(CompilationDisabledError, match=r"other_0 is not in .*\nRemedy: unset it"):
        cache.find_or_build("other_0", never_build)
    monkeypatch.setenv("CONVSMITH_NO_COMPILE", "0")
    assert cache.find_or_build("other_0", build).artifact.exists()


@pytest.mark.parametrize("bit", [0o020, 0o002], ids=["group", "others"])
@pytest.mark.parametrize("part", ["", "entries", f"entries/{KEY}", f"entries/{KEY}/artifact"])
def test_what_others_may_write_is_refused(cache_folder: Path, part: str, bit: int) -> None:
    cache.find_or_build(KEY, build)
    path = cache_folder / part
    path.chmod(path.stat().st_mode | bit)
    for use in (lambda: cache.find(KEY), lambda: cache.find_or_build(KEY, never_build)):
        with pytest.raises(CacheError, match=r"may be written by other users.*\nRemedy: .*chmod"):
            use()
    path.chmod(path.stat().st_mode & ~bit)
    assert cache.find(KEY) is not None


def test_a_folder_made_by_hand_for_everyone_is_refused_before_anything_is_written(
    cache_folder: Path,
) -> None:
    cache_folder.mkdir()
    cache_folder.chmod(0o777)
    with pytest.raises(CacheError, match="mode 0777"):
        cache.find_or_build(KEY, never_build)
    assert list(cache_folder.iterdir()) == []


def test_what_belongs_to_another_user_is_refused(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.find_or_build(KEY, build)
    if os.geteuid() == 0:
        os.chown(cache_folder, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match=r"belongs to user .*\nRemedy: set CONVSMITH_CACHE"):
        cache.find(KEY)


def test_a_umask_that_lets_the_group_write_does_no_harm(cache_folder: Path) -> None:
    umask = os.umask(0)
    try:
        entry = cache.find_or_build(KEY, build)
    finally:
        os.umask(umask)
    assert cache.find(KEY) == entry


# Disks


READER = """
import os, sys
from convsmith.errors import CacheError
from convsmith.jit import cache

if os.geteuid() == 0:
    os.setuid(65534)  # root may write what is read-only
print(cache.find_or_build(sys.argv[1], None).artifact.read_bytes())
try:
    cache.find_or_build("absent_0", None)
except CacheError as error:
    print(error)
"""


def test_a_read_only_cache_is_used_but_not_written(
    cache_folder: Path, start_child: StartChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own folders are closed to the other user that root's child becomes.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "cache"
        monkeypatch.setenv("CONVSMITH_CACHE", str(root))
        cache.find_or_build(KEY, build)
        for path in (*root.rglob("*"), root):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            lines = start_child(READER, KEY).output().splitlines()
        finally:
            for path in (root, *root.rglob("*")):
                path.chmod(0o700)
    assert lines[0] == "b'machine code'"
    assert "cannot be written: Permission denied" in lines[1]
    assert lines[2].startswith("Remedy: set CONVSMITH_CACHE to a folder")


FILLER = """
import resource, sys
from convsmith.errors import CacheError
from convsmith.jit import cache

def build(folder):
    (folder / "artifact").write_bytes(b"x" * int(sys.argv[1]))
    return cache.Build("kernel", "sm_90", "artifact", "make it", {})

if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
try:
    cache.find_or_build("big_0", build)
except CacheError as error:
    print(error)
sys.argv[1] = 100
print(cache.find_or_build("small_0", build).size)
print([entry.path.name for entry in cache.list_entries()])
print([path.name for path in (cache.root() / "building").iterdir()])
"""


def assert_a_full_disk_was_explained(output: str) -> None:
    error, remedy, size, entries, building = output.splitlines()
    assert "cannot be written" in error
    assert remedy.startswith("Remedy: free some space (convsmith cache clear), or set")
    assert (size, entries, building) == ("100", "['small_0']", "[]")


def test_a_file_that_may_not_grow_is_an_error_with_its_remedy(
    cache_folder: Path, start_child: StartChild
) -> None:
    output = start_child(FILLER, 1 << 20, "limit").output()
    assert "File too large" in output
    assert_a_full_disk_was_explained(output)


def test_a_full_disk_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    small = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    if subprocess.run([*mount, small], capture_output=True).returncode != 0:
        pytest.skip("this system does not let a test mount a small disk")
    filler = shlex.join([sys.executable, "-c", FILLER, str(1 << 20), "disk"])
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CONVSMITH_CACHE": f"{tmp_path}/cache"}
    ended = subprocess.run(
        [*mount, f"{small} && {filler}"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "No space left on device" in ended.stdout
    assert_a_full_disk_was_explained(ended.stdout.strip())
