"""Runs one command in a box: ``python -m scorecard.box_launcher BOX.json-text REPORT_FD``.

    launcher   watches time, memory, processes and disk; kills; writes how it ended to REPORT_FD
    └── outer  moves into new user, mount, PID, network, IPC and UTS namespaces
        └── init   process 1 of the box: builds its root, drops every privilege, collects the dead
            └── the command

When any of them dies, those below it die too: by PR_SET_PDEATHSIG, and all of a PID namespace with its
process 1. Standard input, output and error are the caller's.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress

from scorecard import box_root, namespaces, supervise
from scorecard.box import IDENTITY, NOBODY, SCRATCH, Box, BoxEnded
from scorecard.box_watch import watch
from scorecard.spec import from_json, to_json

_SETUP_FAILED = 70


def main() -> int:
    box, report = from_json(Box, json.loads(sys.argv[1])), int(sys.argv[2])
    os.set_inheritable(report, False)
    parent = os.getppid()
    namespaces.die_with_parent(signal.SIGKILL)
    supervise.adopt_orphans()
    if os.getppid() != parent:
        return 1
    errors, failed = os.pipe()
    try:
        child = _isolated(box, failed) if box.isolated else _bare(box, failed)
    except OSError as error:
        _report(report, BoxEnded(error=str(error)))
        return 1
    os.close(failed)
    for stream in (0, 1):  # the pipes are the command's alone, so that they end with it
        os.close(stream)
    ended = watch(child, box)
    supervise.clear()
    with os.fdopen(errors, "rb") as stream_of_errors:
        message = stream_of_errors.read(4000).decode(errors="replace")
    _report(report, BoxEnded(error=message) if message else ended)
    return 0


def _report(descriptor: int, ended: BoxEnded) -> None:
    with suppress(BrokenPipeError):
        os.write(descriptor, json.dumps(to_json(ended)).encode())


def _isolated(box: Box, failed: int) -> int:
    ready, unshared = os.pipe()
    mapped, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os.close(go)
        _guarded(lambda: _outer(box, failed, unshared, mapped), failed)
    os.close(unshared)
    os.close(mapped)
    try:
        if os.read(ready, 1):
            namespaces.map_ids(child, IDENTITY, NOBODY)
            os.write(go, b"g")
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(ready)
        os.close(go)
    return child


def _guarded(function: Callable[[], None], failed: int) -> None:
    """Run ``function`` in a forked child and end; what goes wrong is told through ``failed``."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - the child must never return into the launcher's code
        with suppress(OSError):
            os.write(failed, f"{error}"[:1000].encode())
    finally:
        os._exit(_SETUP_FAILED)


def _outer(box: Box, failed: int, unshared: int, mapped: int) -> None:
    namespaces.die_with_parent(signal.SIGKILL)
    kinds = namespaces.NEWUSER | namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWIPC | namespaces.NEWUTS
    namespaces.unshare(kinds | (0 if box.network else namespaces.NEWNET))
    os.write(unshared, b"u")
    os.close(unshared)
    if not os.read(mapped, 1):
        raise OSError("the user namespace got no identity")
    child = os.fork()
    if child == 0:
        _guarded(lambda: _init(box, failed), failed)
    _let_go(failed)
    os._exit(_wait(child))


def _init(box: Box, failed: int) -> None:
    namespaces.die_with_parent(signal.SIGKILL)
    with suppress(OSError):
        namespaces.forbid_nested()
    box_root.build(box)
    namespaces.drop_privileges(IDENTITY)
    namespaces.die_with_parent(signal.SIGKILL)  # forgotten with the old identity
    child = os.fork()
    if child == 0:
        _guarded(lambda: _command(box, SCRATCH), failed)
    _let_go(failed)
    os._exit(_wait(child))


def _let_go(failed: int) -> None:
    for descriptor in (0, 1, 2, failed):
        os.close(descriptor)


def _wait(child: int) -> int:
    """The exit code of ``child`` as a shell writes it; collects every other process that ends before."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _bare(box: Box, failed: int) -> int:
    child = os.fork()
    if child == 0:
        namespaces.die_with_parent(signal.SIGKILL)
        folder = tempfile.mkdtemp(dir=box.root)
        _guarded(lambda: _command(box, folder), failed)
    return child


def _command(box: Box, folder: str) -> None:
    limits = box.limits
    wanted = {
        resource.RLIMIT_CPU: int(limits.cpu_seconds) + 1,
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    if box.isolated:  # elsewhere it would count everything that this user runs
        wanted[resource.RLIMIT_NPROC] = limits.processes
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.umask(0o022)
    os.setsid()
    os.chdir(folder)
    os.execve(box.command[0], box.command, dict(box.environment))


if __name__ == "__main__":
    sys.exit(main())
