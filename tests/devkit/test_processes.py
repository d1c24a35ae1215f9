from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from time import monotonic, sleep

import pytest

from tasquencer.devkit.errors import ProcessFailed
from tasquencer.devkit.processes import ChildProcess, answers, free_port
from tests.support.patience import PATIENCE_SECONDS

STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ignoring SIGTERM", flush=True)
signal.pause()
"""


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended but was not collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_gone(pid: int) -> bool:
    deadline = monotonic() + PATIENCE_SECONDS
    while alive(pid) and monotonic() < deadline:
        sleep(0.01)
    return not alive(pid)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def wait_output(process: ChildProcess, text: str) -> None:
    async def ready() -> bool:
        return text in process.output()

    await process.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)


async def test_a_process_ends_by_sigterm_and_stopping_it_again_is_harmless() -> None:
    process = ChildProcess("sleeper", python("import signal; print('up', flush=True); signal.pause()"))
    await wait_output(process, "up")

    assert await process.stop(grace_seconds=PATIENCE_SECONDS) == -signal.SIGTERM
    assert await process.stop(grace_seconds=PATIENCE_SECONDS) == -signal.SIGTERM
    assert not alive(process.pid)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period() -> None:
    process = ChildProcess("stubborn", python(STUBBORN))
    await wait_output(process, "ignoring")

    assert await process.stop(grace_seconds=0.1) == -signal.SIGKILL


async def test_a_stop_that_is_cancelled_while_it_waits_still_kills() -> None:
    process = ChildProcess("stubborn", python(STUBBORN))
    await wait_output(process, "ignoring")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await process.stop(grace_seconds=60)
    assert process.exit_status == -signal.SIGKILL


async def test_stopping_a_process_ends_what_it_started_too() -> None:
    code = """if True:
        import subprocess
        child = subprocess.Popen(['sleep', '600'])
        print('child', child.pid, flush=True)
        child.wait()
    """
    process = ChildProcess("parent", python(code))
    await wait_output(process, "child")
    grandchild = int(process.last_line().split()[1])

    await process.stop()
    assert wait_gone(grandchild)


async def test_a_process_that_ends_before_it_is_ready_is_reported_with_its_last_words() -> None:
    process = ChildProcess("the thing", python("print('starting'); raise SystemExit('no disk left')"))

    async def never() -> bool:
        return False

    with pytest.raises(ProcessFailed, match=r"^the thing ended with status 1: no disk left$"):
        await process.wait_ready(never, timeout_seconds=PATIENCE_SECONDS)
    await process.stop()


async def test_a_process_that_does_not_become_ready_in_time_is_reported() -> None:
    process = ChildProcess("the thing", python("import signal; signal.pause()"))

    async def never() -> bool:
        return False

    with pytest.raises(ProcessFailed, match=r"^the thing did not become ready within 0.1 s$"):
        await process.wait_ready(never, timeout_seconds=0.1)
    await process.stop()


async def test_the_output_can_go_to_a_file_that_stays(tmp_path: Path) -> None:
    log = tmp_path / "process.log"
    log.write_text("from before\n")
    process = ChildProcess("talker", python("print('hello')"), output_file=log)
    assert await process.wait(timeout_seconds=PATIENCE_SECONDS) == 0

    assert process.output() == "hello\n"
    await process.stop()
    assert log.read_text() == "from before\nhello\n"


async def test_a_program_that_does_not_exist_is_reported() -> None:
    with pytest.raises(ProcessFailed, match=r"^ghost did not start: there is no program '/no/such/program'$"):
        ChildProcess("ghost", ["/no/such/program"])


async def test_the_child_has_a_process_group_of_its_own_so_that_ctrl_c_does_not_reach_it() -> None:
    process = ChildProcess("sleeper", python("import signal; signal.pause()"))
    try:
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    finally:
        await process.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_child_dies_with_a_parent_that_is_killed() -> None:
    code = textwrap.dedent(
        """
        import asyncio, signal, sys
        from tasquencer.devkit.processes import ChildProcess
        from tests.support.patience import PATIENCE_SECONDS
        async def main():
            code = "import signal; print('up', flush=True); signal.pause()"
            child = ChildProcess("child", [sys.executable, "-c", code])
            async def ready():
                return "up" in child.output()
            await child.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)
            print(child.pid, flush=True)
            signal.pause()
        asyncio.run(main())
        """
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    assert wait_gone(child)


async def test_a_free_port_answers_only_once_something_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))  # before another process takes it
        port = listener.getsockname()[1]
        assert not await answers(port)
        server = await asyncio.start_server(lambda reader, writer: writer.close(), sock=listener)
        assert await answers(port)
        server.close()
