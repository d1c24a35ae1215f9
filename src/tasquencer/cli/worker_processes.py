"""Several processes of one worker program, with a parent that starts and stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from tasquencer.cli.output import say
from tasquencer.temporal.running import PARENT_PIPE

__all__ = ["metrics_address_of", "run_processes"]


def run_processes(count: int, *, metrics_address: str | None = None) -> None:
    """Run this program `count` times, each with its own command line plus `--processes 1`, and end.

    SIGTERM or SIGINT stops all processes gracefully, a second signal immediately. If a process ends without
    a signal to the parent, the parent reports it in one line and stops the others gracefully.

    Args:
        count: The number of processes.
        metrics_address: If there is one, the first process serves its metrics there, and each further
            process at the next port.

    Raises:
        SystemExit: always. The status is 0 if a signal stopped all processes and each ended with 0.
    """
    raise SystemExit(asyncio.run(_supervise(count, metrics_address)))


def metrics_address_of(index: int, address: str) -> str:
    """Return the address of the process with this index: the port plus the index.

    Port 0 and an address without a port stay as they are.
    """
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + index}" if port.isdecimal() and int(port) else address


async def _supervise(count: int, metrics_address: str | None) -> int:
    loop = asyncio.get_running_loop()
    signalled = loop.create_future()
    children: list[asyncio.subprocess.Process] = []

    def on_signal(number: int) -> None:
        if not signalled.done():
            signalled.set_result(None)
            return
        say("second signal: stopping all worker processes immediately")
        for child in children:
            if child.returncode is None:
                child.kill()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    # The children stop when the pipe closes. That also happens if this process is killed.
    reading, writing = os.pipe()
    for index in range(count):
        child = await _start(index, reading, metrics_address)
        children.append(child)  # not all at the end: a second signal kills those that run
    os.close(reading)
    ends = [asyncio.create_task(child.wait()) for child in children]
    await asyncio.wait({signalled, *ends}, return_when=asyncio.FIRST_COMPLETED)
    unexpected = 0
    if not signalled.done():
        index = next(index for index, end in enumerate(ends) if end.done())
        unexpected = _exit_status(ends[index].result()) or 1
        say(
            f"error: worker process {index + 1} of {count} (pid {children[index].pid}) "
            f"{_how_it_ended(ends[index].result())}: stopping the others"
        )
    os.close(writing)
    statuses = [_exit_status(status) for status in await asyncio.gather(*ends)]
    return unexpected or next(filter(None, statuses), 0)


async def _start(index: int, pipe: int, metrics_address: str | None) -> asyncio.subprocess.Process:
    options = ["--processes", "1"]
    if metrics_address is not None:
        options += ["--metrics-address", metrics_address_of(index, metrics_address)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *sys.orig_argv[1:],
        *options,
        stdin=subprocess.DEVNULL,
        pass_fds=(pipe,),
        # A terminal's Ctrl-C must reach the parent alone, or a child would count it as its second signal.
        start_new_session=True,
        env=os.environ | {PARENT_PIPE: str(pipe)},
    )


def _exit_status(status: int) -> int:
    return status if status >= 0 else 128 - status


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
