"""A child that misbehaves in every way is stopped and described, and what it said is kept."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from processes import wait_until_ended

from convsmith.kernelbench import supervise as supervise_module
from convsmith.kernelbench.supervise import (
    Ending,
    Limits,
    Message,
    default_memory_limit,
    supervise,
)

# Run as ``python -m misbehaving <behaviour> <descriptor>``; it imports nothing that takes time.
MODULE = """
import ctypes, json, os, signal, subprocess, sys, time

descriptor = int(sys.argv[2])
def send(**message):
    os.write(descriptor, json.dumps(message).encode() + b"\\n")

def finish():
    send(done=True)
    os._exit(0)

send(trial="first")
behaviour = sys.argv[1]
if behaviour == "finishes":
    print("hello")
elif behaviour == "prints":
    sys.stdout.write("x" * 50_000_000)
elif behaviour == "prints for ever":
    while True:
        sys.stdout.write("x" * 1_000_000)
elif behaviour == "ends":
    os._exit(0)
elif behaviour == "raises":
    raise ValueError("a reason")
elif behaviour == "segfaults":
    ctypes.string_at(0)
elif behaviour == "aborts":
    os.abort()
elif behaviour == "sleeps":
    time.sleep(1000)
elif behaviour == "speaks":
    for _ in range(1000):
        time.sleep(0.05)
        send(case="again")
elif behaviour == "takes memory":
    taken = [b"x" * (1 << 24) for _ in range(1000)]
    time.sleep(1000)
elif behaviour == "takes memory in another process":
    subprocess.run([sys.executable, "-c", "x = b'x' * (1 << 30); import time; time.sleep(1000)"])
elif behaviour == "leaves processes":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    group = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"], preexec_fn=os.setpgrp
    )
    send(case=f"{child.pid} {group.pid}")
elif behaviour == "writes nonsense":
    os.write(descriptor, b"nonsense\\n5\\n")
finish()
"""

GENEROUS = Limits(step=60, total=60, memory=1 << 34)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "misbehaving.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def watch(behaviour: str, limits: Limits = GENEROUS) -> tuple[Ending, list[Message]]:
    messages: list[Message] = []
    ending = supervise("misbehaving", [behaviour], limits, messages.append)
    assert messages[0] == {"trial": "first"}
    return ending, messages


def test_a_child_that_finishes() -> None:
    ending, messages = watch("finishes")
    assert ending.finished
    assert messages[-1] == {"done": True}


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("ends", "the process ended itself with status 0"),
        ("raises", "status 1; last printed: ValueError: a reason"),
        ("segfaults", "killed by SIGSEGV (Segmentation fault)"),
        ("aborts", "killed by SIGABRT (Aborted)"),
    ],
)
def test_a_child_that_ends_too_early(behaviour: str, words: str) -> None:
    ending, _ = watch(behaviour)
    assert not ending.finished
    assert words in ending.words


def test_a_child_that_is_silent_for_too_long() -> None:
    started = time.monotonic()
    ending, _ = watch("sleeps", Limits(step=1, total=60, memory=1 << 34))
    assert not ending.finished
    assert ending.words == "still running after 1 s, and was stopped"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("behaviour", ["speaks", "prints for ever"])
def test_the_time_limit_of_everything(behaviour: str) -> None:
    ending, _ = watch(behaviour, Limits(step=30, total=1.5, memory=1 << 34))
    assert not ending.finished
    assert "time limit of the whole check" in ending.words


@pytest.mark.parametrize("behaviour", ["takes memory", "takes memory in another process"])
def test_a_child_that_takes_too_much_memory(behaviour: str) -> None:
    ending, _ = watch(behaviour, Limits(step=60, total=60, memory=1 << 29))
    assert not ending.finished
    assert ending.words == "took more than 0.5 GiB of memory, and was stopped"


def test_what_a_child_prints_is_counted_and_dropped() -> None:
    ending, _ = watch("prints")
    assert ending.finished
    assert ending.printed == 50_000_000


def test_processes_that_a_child_leaves_are_ended() -> None:
    ending, messages = watch("leaves processes")
    assert ending.finished
    for identifier in messages[1]["case"].split():
        wait_until_ended(int(identifier), 10)


def test_processes_that_end_while_they_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_an_ended_process(*arguments: object, **named: object) -> None:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    session = os.getsid(0)
    assert supervise_module._resident(session) > 0
    monkeypatch.setattr(os, "stat", of_an_ended_process)
    monkeypatch.setattr(Path, "read_text", of_an_ended_process)
    assert supervise_module._resident(session) == 0


def test_nonsense_among_the_messages_is_ignored() -> None:
    ending, messages = watch("writes nonsense")
    assert ending.finished
    assert messages == [{"trial": "first"}, {"done": True}]


def test_the_working_folder_is_a_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(
        "import json, os, sys\n"
        "message = {'case': os.getcwd(), 'done': True}\n"
        "os.write(int(sys.argv[2]), json.dumps(message).encode() + b'\\n')\n"
    )
    messages: list[Message] = []
    supervise("telling", [""], GENEROUS, messages.append)
    folder = Path(messages[0]["case"])
    assert folder != Path.cwd()
    assert not folder.exists()


def test_a_relative_search_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    assert watch("finishes")[0].finished


def test_the_default_memory_limit_leaves_some() -> None:
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < default_memory_limit() < everything
