"""One writer per folder, on one machine or several, on local and on network drives.

The lock is a POSIX record lock on a file: the kernel (or the file server) drops it when its process ends, however that
ends, and child processes do not inherit it. No process id is ever asked whether it lives: ids are reused, and those of
another machine or container mean nothing here.

Some network drives keep such locks to one machine, or know none. So the file also says who holds it, and the holder
touches it every `BEAT` seconds. A lock that was free for this machine but was left by another one counts as held until
the file was silent for `SILENCE` seconds by the file server's own clock, or while this machine watched it for as long:
a file may be dated in the future. Clocks of machines are not compared.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mora.system.messages import printable

try:
    import fcntl
except ImportError:  # no POSIX: the heartbeat alone tells
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
BEAT, SILENCE, LOOK = 10.0, 60.0, 1.0
LARGEST_OWNER = 4096
# Locks of this process, by device and inode: the kernel's are per process, and are lost when any descriptor is closed.
HELD: set[tuple[int, int]] = set()
GUARD = threading.Lock()


class FolderLock:
    """The right to write a folder, as a context manager.

    Args:
        folder: what is locked, for messages.
        path: the lock's file; None is `LOCK` inside the folder.
        say: told when it has to wait, at most `SILENCE` seconds, for another machine's holder to show that it lives.

    Raises ValueError that names the holder when another process, or another run of this one, has it; OSError where no
    file can be made.
    """

    def __init__(self, folder: Path, path: Path | None = None, say: Callable[[str], None] | None = None) -> None:
        self.folder, self.path, self.say = folder, folder / LOCK if path is None else path, say
        self.token = secrets.token_hex(8)
        self.descriptor: int | None = None
        self.key = (0, 0)
        self.seen = ("", 0)
        self.since = 0.0  # when this one first saw what it waits for, by its own clock
        self.shared = True
        self.done = threading.Event()

    @classmethod
    def beside(cls, folder: Path, say: Callable[[str], None] | None = None) -> FolderLock:
        """For a folder that appears as a whole: the file lies beside it, or inside where its parent is not writable."""
        folder = Path(os.path.abspath(folder))
        inside = folder.is_dir() and not os.access(folder.parent, os.W_OK)
        return cls(folder, None if inside else folder.with_name(f".{folder.name}{LOCK}"), say)

    def __enter__(self) -> FolderLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        first = None
        while not self.attempt(first):
            if first is None and self.say is not None:
                self.say(f"{self.folder}: waiting to see whether {named(self.seen[0])} still writes it")
            if first is None:
                first, self.since = self.seen, time.monotonic()
            time.sleep(LOOK)
        threading.Thread(target=self.beat, name="folder lock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        with GUARD:
            assert self.descriptor is not None
            ours, descriptor, self.descriptor = self.is_ours(), self.descriptor, None
            HELD.discard(self.key)
            if not self.shared:
                os.close(descriptor)
            if ours:
                with suppress(OSError):
                    self.path.unlink()  # before the kernel's lock is dropped: whoever waits makes a new file
            if self.shared:
                os.close(descriptor)

    def attempt(self, first: tuple[str, int] | None) -> bool:
        """Take the lock if it is free; False where another machine's holder may live, seen `first` as it was then."""
        flags = os.O_RDWR | os.O_CREAT
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
            flags |= getattr(os, name, 0)
        with GUARD:
            while True:
                self.refuse_own()
                descriptor = os.open(self.path, flags, 0o666)
                try:
                    taken = self.take(descriptor, first)
                except BaseException:
                    os.close(descriptor)
                    raise
                if taken:
                    break
                os.close(descriptor)  # opened anew at the next look, so that a network drive asks its server
                if self.seen[0]:
                    return False
            self.descriptor = descriptor
            HELD.add(self.key)
        if not self.shared:  # without locks, whoever wrote last has it
            try:
                time.sleep(LOOK)
                self.check()
            except BaseException:
                self.drop()
                raise
        return True

    def drop(self) -> None:
        """No longer hold what was lost; the file is another one's."""
        with GUARD:
            assert self.descriptor is not None
            os.close(self.descriptor)
            self.descriptor = None
            HELD.discard(self.key)

    def take(self, descriptor: int, first: tuple[str, int] | None) -> bool:
        """Lock an open file and write the owner into it; False when it was removed meanwhile, or is not to be taken."""
        self.shared = self.lock(descriptor)
        found = os.fstat(descriptor)
        self.key, self.seen = (found.st_dev, found.st_ino), ("", 0)
        if not self.is_at(self.key):
            return False
        self.seen = (read_owner(descriptor), found.st_mtime_ns)
        if not self.may_take(first):
            return False
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(self.owner()).encode())
        return True

    def refuse_own(self) -> None:
        """ValueError when this process holds the lock already; a second descriptor's end would drop it."""
        with suppress(FileNotFoundError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) in HELD:
                raise ValueError(self.message("another run of this process"))

    def lock(self, descriptor: int) -> bool:
        """Ask the kernel; False where the file system knows no locks. ValueError when another process has it."""
        if fcntl is None:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(self.message(named(read_owner(descriptor)))) from None
            return False
        return True

    def may_take(self, first: tuple[str, int] | None) -> bool:
        """Whether whoever wrote the file is gone for sure. ValueError when it was touched since `first`."""
        text, touched = self.seen
        if not text or (self.shared and parsed(text).get("kernel") == kernel()):
            return True
        if first is not None and self.seen != first:
            raise ValueError(self.message(named(text)))
        waited = 0.0 if first is None else time.monotonic() - self.since
        return max(waited, (self.now() - touched) / 1e9) > SILENCE

    def now(self) -> int:
        """The file server's time in nanoseconds."""
        probe = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            probe.touch(exist_ok=False)
            return probe.stat().st_mtime_ns
        finally:
            probe.unlink(missing_ok=True)

    def owner(self) -> dict[str, Any]:
        """Who holds the lock."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": since,
            "kernel": kernel(),
            "token": self.token,
        }

    def message(self, holder: str) -> str:
        """The one line for a folder that is in use."""
        return f"out: got {self.folder}, which {holder} is writing, expected a folder that nobody else writes"

    def beat(self) -> None:
        """Touch the file as long as the lock is held, by the server's clock."""
        while not self.done.wait(BEAT):
            with GUARD, suppress(OSError):
                if self.descriptor is not None:
                    os.utime(self.path)

    def check(self) -> None:
        """ValueError when the file is gone, or another process took it while this one was silent, as in a sleep."""
        with GUARD:
            if not self.is_ours():
                assert self.descriptor is not None
                holder = named(read_owner(self.descriptor))
                raise ValueError(f"out: lost the lock {self.path} to {holder}, expected to write {self.folder} alone")

    def is_ours(self) -> bool:
        """Whether the file is still there and names this holder."""
        assert self.descriptor is not None
        return self.is_at(self.key) and parsed(read_owner(self.descriptor)).get("token") == self.token

    def is_at(self, key: tuple[int, int]) -> bool:
        """Whether the path leads to that file."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == key


def read_owner(descriptor: int) -> str:
    """What the file says."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, LARGEST_OWNER).decode(errors="replace")


def parsed(text: str) -> dict[str, Any]:
    """The owner of a lock's text; empty where that says nothing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def named(text: str) -> str:
    """The holder in words."""
    owner = parsed(text)
    words = {name: str(owner.get(name, "?"))[:100] for name in ("host", "pid", "since")}
    if not owner:
        return "another process"
    return printable(f"process {words['pid']} on {words['host']} since {words['since']}")


def kernel() -> str:
    """What names the running kernel, across containers: locks are exact within one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
