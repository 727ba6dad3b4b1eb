"""The file system of a box: an empty one, and in it read-only what Python and its libraries need."""

from __future__ import annotations

import socket
from pathlib import Path

from scorecard import namespaces
from scorecard.box import SCRATCH, Box

_DEVICES = ("null", "zero", "full", "random", "urandom")
_NVIDIA = ("nvidia*", "nvidia-caps/*")
_CPU_FACTS = ("/sys/devices/system/cpu", "/sys/devices/system/node")
_ROOT_BYTES = 4 << 20


def build(box: Box) -> None:
    """Make the box's root and move into it. Call it in mount, PID and user namespaces of its own."""
    namespaces.mount("none", "/", "none", namespaces.REC | namespaces.PRIVATE)
    root = Path(box.root)
    plain = namespaces.NOSUID | namespaces.NODEV
    namespaces.mount("tmpfs", str(root), "tmpfs", plain, f"size={_ROOT_BYTES},mode=755")
    for inside, outside in box.links.items():
        _below(root, inside).parent.mkdir(parents=True, exist_ok=True)
        _below(root, inside).symlink_to(outside)
    _devices(root)
    _scratch(root, box.limits.scratch_bytes)  # first: what is shown may lie below /tmp
    for inside, outside in box.readable.items():
        _bind(root, inside, outside, readonly=True)
    for inside, outside in box.writable.items():
        _bind(root, inside, outside, readonly=False)
    for facts in _CPU_FACTS:
        if Path(facts).is_dir():
            _bind(root, facts, facts, readonly=True)
    (root / "proc").mkdir()
    namespaces.mount("proc", str(root / "proc"), "proc", plain | namespaces.NOEXEC | namespaces.RDONLY)
    namespaces.mount("none", str(root), "none", namespaces.REMOUNT | plain | namespaces.RDONLY)
    socket.sethostname("box")
    namespaces.pivot(str(root))


def _below(root: Path, inside: str) -> Path:
    return root / inside.lstrip("/")


def _bind(root: Path, inside: str, outside: str, *, readonly: bool) -> None:
    target = _below(root, inside)
    if Path(outside).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    namespaces.bind(outside, str(target), readonly=readonly)


def _devices(root: Path) -> None:
    """The harmless ones, and those of NVIDIA's driver where there are any."""
    (root / "dev").mkdir()
    found = [Path("/dev", name) for name in _DEVICES]
    found += [path for pattern in _NVIDIA for path in Path("/dev").glob(pattern)]
    for path in found:
        if path.is_char_device():
            _bind(root, str(path), str(path), readonly=False)


def _scratch(root: Path, size_bytes: int) -> None:
    """One file system of limited size for everything that the box may write: $HOME, /tmp and /dev/shm."""
    place = _below(root, SCRATCH)
    place.mkdir()
    options = f"size={size_bytes},nr_inodes=100000,mode=1777"
    namespaces.mount("tmpfs", str(place), "tmpfs", namespaces.NOSUID | namespaces.NODEV, options)
    for name, target in (("tmp", root / "tmp"), ("shm", root / "dev" / "shm")):
        source = place / name
        source.mkdir()
        source.chmod(0o1777)
        target.mkdir(exist_ok=True)
        namespaces.mount(str(source), str(target), "none", namespaces.BIND)
