"""Child processes that always end: with the block that started them, or with this process.

Three cases are easy to get wrong. This module handles them:

- *The block raises or is cancelled.* `ChildProcess.stop` terminates, waits, then kills. If it is
itself cancelled while it waits, it kills immediately.
- *This process is killed* (SIGKILL, out of memory) and runs no cleanup. On Linux the kernel can signal the
child when its parent dies (`PR_SET_PDEATHSIG`). The child must ask for this itself. `preexec_fn` is not safe,
because it runs Python in a fork that may hold locks of the Temporal SDK's threads. So the child starts with
a few lines of Python that become the real program with `exec`, which keeps the process id and the setting.
The kernel watches the *thread* that started the child, so start it from a thread that outlives it.
- *Ctrl-C.* A terminal sends it to the whole foreground process group. A server that gets it dies before the
worker that still needs it. The child has its own process group, so only this process stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import IO

from tasquencer.devkit.errors import ProcessFailed

__all__ = ["ChildProcess", "answers", "free_port"]

_GUARD = """
import ctypes, os, signal, sys
parent, death_signal, uid, gid = (int(argument) for argument in sys.argv[1:5])
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
ctypes.CDLL(None).prctl(1, death_signal, 0, 0, 0)  # PR_SET_PDEATHSIG; changing the user would clear it
if os.getppid() != parent:  # it died before the request was made
    os.kill(os.getpid(), signal.SIGKILL)
os.execvp(sys.argv[5], sys.argv[5:])
"""


def free_port() -> int:
    """Return a TCP port that is free on the loopback interface right now.

    Another process may take it before the caller does, so try again after "address in use".
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def answers(port: int) -> bool:
    """Return whether a server accepts TCP connections on this loopback port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class ChildProcess:
    """A child process whose output goes to a file, never to the terminal.

    Args:
        name: Its name in error messages.
        command: The program's path and its arguments.
        environment: The child's whole environment. Default: this process's.
        output_file: The file to append its output to. Default: a temporary file that vanishes with us.
        death_signal: The signal that the child gets when this process dies without stopping it (Linux only).
        user: The `(uid, gid)` to run as, if this process may change that.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        output_file: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        user: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        if shutil.which(command[0]) is None:
            raise ProcessFailed(name, "did not start", f"there is no program {str(command[0])!r}")
        # It stays open as long as the process. `kill` closes it.
        self._output: IO[bytes] = (
            output_file.open("ab+") if output_file else tempfile.TemporaryFile()  # noqa: SIM115
        )
        self._output_start = self._output.seek(0, os.SEEK_END)
        arguments = [str(part) for part in command]
        guarded = sys.platform == "linux"
        if guarded:
            uid, gid = user if user is not None else (-1, -1)
            facts = (str(os.getpid()), str(int(death_signal)), str(uid), str(gid))
            arguments = [sys.executable, "-I", "-S", "-c", _GUARD, *facts, *arguments]
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
                user=user[0] if user is not None and not guarded else None,
                group=user[1] if user is not None and not guarded else None,
                extra_groups=[] if user is not None and not guarded else None,
            )
        except OSError as error:
            self._output.close()
            raise ProcessFailed(name, "did not start", str(error)) from error

    @property
    def pid(self) -> int:
        """The process id of the program itself. There is no shell in between."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal. None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """Return the standard output and standard error so far."""
        if self._output.closed:
            return ""
        descriptor = self._output.fileno()
        size = os.fstat(descriptor).st_size - self._output_start
        # pread, because the child writes through the same file offset.
        return os.pread(descriptor, size, self._output_start).decode(errors="replace")

    def last_line(self) -> str:
        """Return the last line of the output that is not blank, or an empty string."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        return lines[-1] if lines else ""

    async def wait_ready(self, ready: Callable[[], Awaitable[bool]], *, timeout_seconds: float) -> None:
        """Wait until `ready()` is true.

        Raises:
            ProcessFailed: the process ended, or the time is up.
        """
        deadline = monotonic() + timeout_seconds
        while True:
            is_ready = await ready()
            if self.exit_status is not None:  # even if ready, because then another process answered
                raise ProcessFailed(self.name, f"ended with status {self.exit_status}", self.last_line())
            if is_ready:
                return
            if monotonic() > deadline:
                problem = f"did not become ready within {timeout_seconds:g} s"
                raise ProcessFailed(self.name, problem, self.last_line())
            await asyncio.sleep(0.02)

    async def wait(self, *, timeout_seconds: float) -> int | None:
        """Wait for the end of the process. Return its exit status, or None if the time is up first."""
        deadline = monotonic() + timeout_seconds
        while self.exit_status is None and monotonic() < deadline:
            await asyncio.sleep(0.01)
        return self.exit_status

    def send(self, what: signal.Signals) -> None:
        """Send a signal to the process if it still runs."""
        self._process.send_signal(what)

    async def stop(self, *, first: signal.Signals = signal.SIGTERM, grace_seconds: float = 5.0) -> int:
        """End the process and its children, and return its exit status. Safe to call again."""
        try:
            self.send(first)
            await self.wait(timeout_seconds=grace_seconds)
        finally:
            self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """Kill the process and its children immediately."""
        if not self._output.closed:
            self._process.kill()
            # The child's process group includes what it started and left behind. macOS reports
            # "not permitted" where Linux reports "no such process".
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._output.close()
        self._process.wait()
