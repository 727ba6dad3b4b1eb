"""Make the original model unreachable for a process, so that a score can only come from the artifact.

On Linux the process moves into a mount and network namespace of its own (``unshare(2)``, inside a user
namespace when it is not root): hidden folders are covered by an empty read-only file system, granted
folders are bound to new paths, and no network is left but the loopback device. Where the kernel refuses,
a Python audit hook (PEP 578) refuses file access instead; it cannot see files that C or Rust code opens,
which is why the mode is part of the record.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scorecard.errors import IsolationError

Mode = Literal["namespace", "audit-hook"]

_NEWNS, _NEWUSER, _NEWNET = 0x00020000, 0x10000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY")


@dataclass
class Isolation:
    """What ``enter`` set up: where granted folders are now, and the granted folders still covered.

    ``hidden`` are the folders that the audit hook refuses; in a namespace nothing needs to know them.
    """

    mode: Mode
    granted: dict[str, Path]
    hidden: tuple[Path, ...] = ()
    _covered: dict[str, Path] = field(default_factory=dict)
    _denied: list[Path] = field(default_factory=list)

    def reveal(self, name: str) -> Path:
        """Uncover a folder that was granted for later, and say where it is."""
        path = self._covered.pop(name)
        if self.mode == "namespace":
            _check(_libc().umount2(os.fsencode(path), 0), f"umount {path}")
        else:
            self._denied.remove(path)
        return path


def enter(
    scratch: Path,
    *,
    hidden: Sequence[Path],
    granted: Mapping[str, Path],
    later: Sequence[str] = (),
    writable: Sequence[str] = (),
    needed: Sequence[Path] = (),
) -> Isolation:
    """Hide folders from this process for good; call it before any thread is started.

    ``granted`` folders stay reachable although they lie in hidden ones, under ``scratch`` (an empty folder
    outside the hidden ones) and read-only unless ``writable``; those named in ``later`` stay covered until
    ``Isolation.reveal``. Raises IsolationError when a hidden folder holds what the process needs to run:
    itself, its Python and those in ``needed``.
    """
    _go_offline()
    found = {p.resolve() for p in hidden if p.is_dir()}
    folders = [p for p in sorted(found) if not found & set(p.parents)]
    for place in (scratch.resolve(), Path(sys.prefix), Path(__file__).resolve().parents[1], *needed):
        holder = next((f for f in folders if place.is_relative_to(f)), None)
        if holder:
            raise IsolationError(f"{holder}: holds the original model and {place}; keep the two apart")
    if _new_namespaces():
        return _cover(scratch, folders, granted, later, writable)
    return _watch(folders, granted, later)


def offline(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with the hub off and without secrets."""
    kept = {n: v for n, v in environment.items() if not any(word in n.upper() for word in _SECRETS)}
    return {**kept, **dict.fromkeys(_OFFLINE, "1")}


def _go_offline() -> None:
    wanted = offline(os.environ)
    for name in [n for n in os.environ if n not in wanted]:
        del os.environ[name]
    os.environ.update(wanted)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _new_namespaces() -> bool:
    """Own mount and network namespaces; False where the kernel does not allow them."""
    if not sys.platform.startswith("linux"):
        return False
    libc, uid, gid = _libc(), os.geteuid(), os.getegid()
    if libc.unshare(_NEWNS | _NEWNET) == 0:
        return True
    if libc.unshare(_NEWUSER | _NEWNS | _NEWNET) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


def _mount(source: str | Path, target: Path, kind: str, flags: int, data: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())
    _check(_libc().mount(*arguments), f"mount {target}")


def _cover(
    scratch: Path,
    hidden: list[Path],
    granted: Mapping[str, Path],
    later: Sequence[str],
    writable: Sequence[str],
) -> Isolation:
    _mount("none", Path("/"), "none", _REC | _PRIVATE)
    paths = {}
    for name, source in granted.items():
        paths[name] = scratch / name
        paths[name].mkdir()
        _mount(source, paths[name], "none", _BIND)
        if name not in writable:
            _make_readonly(paths[name])
    empty = [*hidden, *(paths[name] for name in later)]
    for folder in empty:
        _mount("tmpfs", folder, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k")
    _loopback_up()
    return Isolation("namespace", paths, (), {name: paths[name] for name in later})


def _make_readonly(path: Path) -> None:
    """Best effort: some file systems lock their flags inside a user namespace."""
    stat = os.statvfs(path)
    kept = stat.f_flag & (_NOSUID | _NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_RELATIME)
    _libc().mount(b"none", os.fsencode(path), b"none", _REMOUNT | _BIND | _RDONLY | kept, b"")


def _loopback_up() -> None:
    """Raise ``lo``, so that a model served on this machine can still be reached by its own process."""
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # noqa: N806 - names of the kernel's interface
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def watch(hidden: Sequence[Path], granted: Mapping[str, Path]) -> None:
    """The audit hook in a process that an isolated one started: it is not inherited, as a namespace is."""
    _watch(list(hidden), granted, ())


def _watch(hidden: list[Path], granted: Mapping[str, Path], later: Sequence[str]) -> Isolation:
    allowed = {name: path.resolve() for name, path in granted.items()}
    denied = [allowed[name] for name in later]
    covered = {name: allowed[name] for name in later}
    state = Isolation("audit-hook", allowed, tuple(hidden), covered, denied)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir", "os.rename", "os.link", "os.symlink"):
            return
        for argument in arguments[:1]:
            if isinstance(argument, (str, bytes, os.PathLike)):
                _refuse(Path(os.fsdecode(argument)), hidden, denied, allowed)

    sys.addaudithook(hook)
    return state


def _refuse(path: Path, hidden: list[Path], denied: list[Path], allowed: Mapping[str, Path]) -> None:
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(folder) for folder in denied):
        raise IsolationError(f"{path}: not to be seen before the artifact is loaded")
    if any(real.is_relative_to(folder) for folder in allowed.values()):
        return
    if any(real.is_relative_to(folder) for folder in hidden):
        raise IsolationError(f"{path}: load() may read $OUTPUT_MODEL only")


def available() -> Mode:
    """What ``enter`` would use on this machine; tried out in a child process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if _new_namespaces() else 1
        finally:
            os._exit(code)
    return "namespace" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 else "audit-hook"
