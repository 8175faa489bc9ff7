"""One writer per folder: whoever is second is told who the first is, and a kill leaves nothing that blocks."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest

from mora.system import lock
from mora.system.lock import FolderLock

FORK = multiprocessing.get_context("fork")


def hold(folder, ready, path=None):
    lock.HELD.clear()  # another process, not a run of this one
    with FolderLock(folder, path):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold the lock of a folder."""
    made = []

    def start(folder=tmp_path, **given):
        ready = FORK.Event()
        made.append(FORK.Process(target=hold, args=(folder, ready), kwargs=given))
        made[-1].start()
        assert ready.wait(30)
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.join()


def test_the_second_is_told_who_the_first_is(tmp_path, holder):
    process = holder()
    said = rf"which process {process.pid} on {socket.gethostname()} since 20..-..-.. ..:..:.. UTC is writing, expected"
    with pytest.raises(ValueError, match=said), FolderLock(tmp_path):
        pass
    assert process.is_alive()


def test_a_killed_holder_blocks_nobody(tmp_path, holder):
    process = holder()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / ".lock").exists()
    began = time.perf_counter()
    with FolderLock(tmp_path) as mine:
        mine.check()
        assert time.perf_counter() - began < 5
    assert not (tmp_path / ".lock").exists()


def test_a_process_id_that_lives_again_blocks_nobody(tmp_path):
    owner = {"host": socket.gethostname(), "pid": os.getppid(), "since": "2020", "kernel": lock.kernel(), "token": "x"}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    with FolderLock(tmp_path):
        pass


def test_runs_of_one_process_exclude_each_other(tmp_path):
    with FolderLock(tmp_path), pytest.raises(ValueError, match="another run of this process"), FolderLock(tmp_path):
        pass
    refused = []

    def second():
        try:
            with FolderLock(tmp_path):
                time.sleep(0.2)
        except ValueError as error:
            refused.append(error)

    threads = [threading.Thread(target=second) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    with FolderLock(tmp_path):
        pass


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    with FolderLock(tmp_path):
        child = FORK.Process(target=time.sleep, args=(20,))  # as a loader's worker that outlives a killed trainer
        child.start()
    with FolderLock(tmp_path):
        pass
    child.kill()
    child.join()


OTHER = {"host": "node7", "pid": 41, "since": "2026-01-01 00:00:00 UTC", "kernel": "another", "token": "x"}


def test_another_machine_s_lock_counts_until_it_was_silent(tmp_path, monkeypatch):
    """Its kernel's lock may not be seen from here: then only the heartbeat tells, by the file server's clock."""
    monkeypatch.setattr(lock, "LOOK", 0.05)
    path, said = tmp_path / ".lock", []
    path.write_text(json.dumps(OTHER))
    os.utime(path, (time.time() - 100,) * 2)
    with FolderLock(tmp_path, say=said.append):
        assert not said
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    path.write_text(json.dumps(OTHER))
    with FolderLock(tmp_path, say=said.append):
        assert said == [
            f"{tmp_path}: waiting to see whether process 41 on node7 since {OTHER['since']} still writes it"
        ]
    path.write_text(json.dumps(OTHER))
    alive = threading.Timer(0.15, os.utime, [path])
    alive.start()
    with pytest.raises(ValueError, match="process 41 on node7 since 2026-01-01 00:00:00 UTC is writing"):
        FolderLock(tmp_path).__enter__()
    alive.join()
    assert json.loads(path.read_text()) == OTHER


def test_a_lock_dated_in_the_future_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    """A clock was set back, or the folder copied with its dates: then the clock of whoever waits counts."""
    monkeypatch.setattr(lock, "LOOK", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.4)
    path = tmp_path / ".lock"
    path.write_text(json.dumps(OTHER))
    os.utime(path, (time.time() + 10**6,) * 2)
    began = time.monotonic()
    with FolderLock(tmp_path):
        assert 0.4 <= time.monotonic() - began < 30
    path.write_text(json.dumps(OTHER))
    os.utime(path, (time.time() + 10**6,) * 2)
    alive = threading.Timer(0.15, os.utime, [path])
    alive.start()
    with pytest.raises(ValueError, match="process 41 on node7"):
        FolderLock(tmp_path).__enter__()
    alive.join()


def test_a_lock_lost_while_it_was_taken_is_not_held(tmp_path, monkeypatch):
    """Without the kernel's locks, two take it at once and the last one has it; the other may try again."""
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "LOOK", 0.5)
    path, held = tmp_path / ".lock", set(lock.HELD)
    faster = threading.Timer(0.2, path.write_text, [json.dumps(OTHER)])
    faster.start()
    mine = FolderLock(tmp_path)
    with pytest.raises(ValueError, match="lost the lock .* to process 41"):
        mine.__enter__()
    assert held == lock.HELD and mine.descriptor is None
    faster.join()
    path.unlink()
    with FolderLock(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(lock, "fcntl", None)
    for name, value in (("LOOK", 0.05), ("BEAT", 0.1), ("SILENCE", 0.6)):
        monkeypatch.setattr(lock, name, value)
    process = holder()
    with pytest.raises(ValueError, match=f"process {process.pid} on"), FolderLock(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with FolderLock(tmp_path):
        pass


def test_a_holder_that_was_silent_too_long_notices(tmp_path):
    with FolderLock(tmp_path) as mine:
        (tmp_path / ".lock").write_text(json.dumps(OTHER))
        with pytest.raises(ValueError, match=r"lost the lock .* to process 41 on node7"):
            mine.check()
    assert json.loads((tmp_path / ".lock").read_text()) == OTHER  # not ours to remove


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"\.lock"):
        FolderLock(tmp_path / "run").__enter__()
    assert victim.read_text() == "precious"


def test_beside(tmp_path, holder):
    """Folders that appear as a whole are locked by a file beside them."""
    out = tmp_path / "merged"
    with FolderLock.beside(out) as mine:
        assert mine.path == tmp_path / ".merged.lock" and not out.exists()
    assert not list(tmp_path.iterdir())
