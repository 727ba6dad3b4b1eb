"""System calls of Linux that make a small world for a process: namespaces, mounts, capabilities.

Everything raises OSError with the name of the step, so that a machine that refuses one says which.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18

_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID = 1, 2
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 24, 38
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode())
    _check(_libc().mount(*arguments), f"mount {target}")


def bind(source: str, target: str, *, readonly: bool) -> None:
    """``source`` and what is mounted below it at ``target`` too, without set-user-ID programs."""
    mount(source, target, "none", BIND | REC)
    attributes = _MountAttributes(_ATTR_NOSUID | (_ATTR_RDONLY if readonly else 0), 0, 0, 0)
    change = getattr(_libc(), "mount_setattr", None)  # glibc 2.36, Linux 5.12
    if change is not None:
        arguments = (os.fsencode(target), _AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))
        _check(change(_AT_FDCWD, *arguments), f"mount_setattr {target}")
        return
    locked = os.statvfs(target).f_flag & (NODEV | NOEXEC | os.ST_NOATIME | os.ST_RELATIME)
    mount("none", target, "none", REMOUNT | BIND | NOSUID | (RDONLY if readonly else 0) | locked)


def pivot(root: str) -> None:
    """Make ``root`` the root directory; the old one is gone from this mount namespace."""
    os.chdir(root)
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")


def map_ids(pid: int, inside: int, outside: int) -> None:
    """Give the user namespace of ``pid`` the one identity ``inside``.

    Outside it is ``outside`` where root asks, so that no file of root can be written through /proc or a
    mount, else the caller itself.
    """
    folder = Path(f"/proc/{pid}")
    if os.geteuid() == 0:
        lines = f"0 0 1\n{inside} {outside} 1\n"
        (folder / "uid_map").write_text(lines)
        (folder / "gid_map").write_text(lines)
        return
    (folder / "setgroups").write_text("deny")
    (folder / "uid_map").write_text(f"{inside} {os.geteuid()} 1\n")
    (folder / "gid_map").write_text(f"{inside} {os.getegid()} 1\n")


def forbid_nested() -> None:
    """No user namespace below this one: there its processes would have capabilities again."""
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def drop_privileges(identity: int) -> None:
    """Become ``identity`` without capabilities, for this process and all that it will start."""
    libc = _libc()
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # fails for the numbers that this kernel has not
    if os.geteuid() != identity:
        os.setgroups([])
        os.setresgid(identity, identity, identity)
        os.setresuid(identity, identity, identity)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(libc.prctl(_DUMPABLE, 0, 0, 0, 0), "dumpable")


def die_with_parent(signal_number: int) -> None:
    _libc().prctl(_PDEATHSIG, signal_number, 0, 0, 0)
