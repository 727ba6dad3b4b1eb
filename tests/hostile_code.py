"""What a submission's user.py may try, by name: code that runs before each answer, and the line it must get.

``{canary}`` is a file of the host, ``{port}`` a port where somebody listens on it. An attack that finds what
it looks for goes on as an honest model, so that every claim holds and the test fails.
"""

from __future__ import annotations

SEARCH = """
import os
def find(*names, holding=b""):
    for place, folders, files in os.walk("/"):
        if place == "/":
            folders[:] = [f for f in folders if f not in ("proc", "sys")]
        for name in files:
            if name in names and holding in open(os.path.join(place, name), "rb").read():
                return os.path.join(place, name)
    raise LookupError("nowhere")
"""

#: By the mount, or before it by the owner.
READ_ONLY = "OSError: .*Read-only file system|PermissionError: "

REFUSED: dict[str, tuple[str, str]] = {
    "reads /etc/passwd": ('open("/etc/passwd").read()', "FileNotFoundError: .*/etc/passwd"),
    "reads /home": ('import os; os.listdir("/home")', "FileNotFoundError"),
    "reads a file of the host": ('open("{canary}").read()', "FileNotFoundError"),
    "writes to a file of the host": ('open("{canary}", "w").write("x")', "OSError|FileNotFoundError"),
    "writes among the libraries": (
        'import os; open(os.path.dirname(os.__file__) + "/written", "w")',
        READ_ONLY,
    ),
    "writes its own code": ('open(__file__, "a").write("x")', READ_ONLY),
    "writes its artifact": (
        'open("/artifact/weights.json", "w").write("x")',
        READ_ONLY,
    ),
    "patches lm-eval on disk": (
        'import importlib.util; open(importlib.util.find_spec("lm_eval").origin, "a").write("x")',
        READ_ONLY,
    ),
    "looks for a mount to write to": (  # also where the owner of the files would let it
        "import importlib.util, os\n"
        'seen = [__file__, "/artifact", os.__file__, importlib.util.find_spec("lm_eval").origin]\n'
        'if all(os.statvfs(p).f_flag & os.ST_RDONLY for p in seen): raise LookupError("none")',
        "LookupError: none",
    ),
    "opens a socket": (
        'import socket; socket.create_connection(("127.0.0.1", {port}), timeout=5)',
        "OSError: .*unreachable|ConnectionRefusedError",
    ),
    "asks a name server": (
        'import socket; socket.getaddrinfo("example.org", 80)',
        "gaierror: ",
    ),
    "reads the documents' answers": (SEARCH + 'find("tiny_pairs.jsonl")', "LookupError: nowhere"),
    "reads the claimed documents": (SEARCH + 'find("documents.parquet")', "LookupError: nowhere"),
    "reads the claimed results": (
        SEARCH + 'find("manifest.json", holding=b"mean_accuracy")',  # packages have files of this name too
        "LookupError: nowhere",
    ),
    "looks for the original model": (SEARCH + 'find("original.json")', "LookupError: nowhere"),
    "looks for the bench": (
        SEARCH + 'find("evaluate.py", "verification.py", holding=b"from scorecard")',
        "LookupError: nowhere",
    ),
    "reads a token of the environment": (
        'import os, glob\nfor f in glob.glob("/proc/*/environ"):\n'
        '    try: text = open(f).read()\n    except OSError: text = ""\n'
        '    if "hf_" in text: break\nelse: raise LookupError("no token")',
        "LookupError: no token",
    ),
    "mounts": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        'if libc.mount(b"none", b"/tmp", b"tmpfs", 0, b""): raise OSError(ctypes.get_errno(), "mount")',
        r"PermissionError: .*mount",
    ),
    "makes a namespace of its own": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        'if libc.unshare(0x10000000): raise OSError(ctypes.get_errno(), "unshare")',
        r"OSError: .*unshare",
    ),
    "makes a device": (
        'import os, stat; os.mknod("/scratch/disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))',
        "PermissionError",
    ),
    "becomes root": ("import os; os.setuid(0)", "PermissionError"),
    "sets the host's kernel up": ('open("/proc/sys/kernel/core_pattern", "w")', "OSError|PermissionError"),
    "lists processes of the host": (
        'import os\nif sum(name.isdigit() for name in os.listdir("/proc")) < 5: raise LookupError("alone")',
        "LookupError: alone",
    ),
    "forks without end": (
        "import os\nwhile True: os.fork()",
        "BlockingIOError|passed the limit of 40 processes|died",
    ),
    "starts threads without end": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "can't start new thread|passed the limit of 40 processes|died",
    ),
    "allocates without end": (
        "hold = []\nwhile True: hold.append(bytearray(1 << 26))",
        "MemoryError|passed the memory limit",
    ),
    "allocates shared memory without end": (
        "import mmap\nhold = []\nwhile True:\n"
        "    hold.append(mmap.mmap(-1, 1 << 26)); hold[-1].write(bytes(1 << 26))",
        "passed the memory limit",
    ),
    "fills the disk": (
        'with open("/scratch/full", "wb") as f:\n    while True: f.write(bytes(1 << 20))',
        "OSError: .*No space left on device",
    ),
    "fills the disk through /dev/shm": (
        'with open("/dev/shm/full", "wb") as f:\n    while True: f.write(bytes(1 << 20))',
        "OSError: .*No space left on device",
    ),
    "opens files without end": (
        'hold = []\nwhile True: hold.append(open("/dev/null"))',
        "OSError: .*Too many open files",
    ),
    "sleeps for ever": ("import time; time.sleep(10**6)", "passed the time limit of 8 s"),
    "works for ever": ("while True: pass", "passed the limit of 4 CPU seconds|killed by signal (9|24)"),
    "crashes": ("import ctypes; ctypes.string_at(0)", r"died \(killed by signal 11\)"),
    "exits": ("import os; os._exit(0)", r"died \(exit code 0\)"),
    "writes protocol lines": (
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, "
        'b\'{{"id": 1, "result": [[-1.0, true]]}}\\n\')\n    except OSError: pass',
        "answered a question that was not asked|answers to",
    ),
    "writes garbage into the protocol": (
        'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b"[" * 100000 + b"\\n")\n'
        "    except OSError: pass",
        "wrote something into the protocol|an answer of more than",
    ),
    "tells of progress without end": (
        "import os\nwhile True:\n    for fd in range(3, 20):\n"
        "        try: os.write(fd, b'{{\"progress\": [1, 2]}}\\n')\n        except OSError: pass",
        "passed the (time limit|limit of 4 CPU seconds)|killed by signal",
    ),
    "says what a terminal obeys": (
        r'raise ValueError("x\nsize \u2713 1 byte\x1b[2J")',
        r"ValueError: x\\nsize ✓ 1 byte\\x1b\[2J",
    ),
    "raises an error of ours": (
        'kind = type("DataUnavailable", (Exception,), dict())\nraise kind("skip me")',
        "✗ not measured: user.py: DataUnavailable: skip me",
    ),
}

#: Attacks that change nothing: the claims, which are true, hold.
CONTAINED: dict[str, str] = {
    "prints a fake score": 'import os; print("accuracy ✓ 0.9999"); os.write(1, "score ✓ 1\\n".encode()); '
    'os.write(2, "accuracy ✓ 0.9999\\n".encode())',
    "kills its parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "kills everything": "import os, signal\n"
    "try: os.kill(-1, signal.SIGKILL)\nexcept ProcessLookupError: pass",
    "patches lm-eval in memory": "import sys, types\n"
    'fake = types.ModuleType("lm_eval"); fake.evaluate = lambda *a, **k: dict(results=1)\n'
    'sys.modules["lm_eval"] = fake',
    "leaves a process behind": "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    "    if os.fork() == 0: time.sleep(9999)\n    os._exit(0)",
    "reads its standard input": "import sys; sys.stdin.read()",
}

#: Answers of loglikelihood that are none, and the line each gets.
ANSWERS: dict[str, tuple[str, str]] = {
    "not a number": ('[(float("nan"), True)] * len(requests)', "log-likelihood nan is no finite number"),
    "minus infinity": ('[(float("-inf"), True)] * len(requests)', "log-likelihood -inf is no finite number"),
    "above zero": ("[(0.5, True)] * len(requests)", "log-likelihood 0.5 is above 0"),
    "a text": ('[("-1", True)] * len(requests)', "log-likelihood -1 is no finite number"),
    "a huge integer": ("[(-(10 ** 400), True)] * len(requests)", "is no finite number"),
    "too few": ("[(-1.0, True)] * (len(requests) - 1)", "19 answers to 20 requests"),
    "too many": ("[(-1.0, True)] * (len(requests) + 1)", "21 answers to 20 requests"),
    "no list": ("7", "no list of answers to 20 requests"),
    "no pairs": ("[-1.0] * len(requests)", r"-1.0 is no \(log-likelihood, is greedy\)"),
    "no truth value": ("[(-1.0, 2)] * len(requests)", r"\[-1.0, 2\] is no \(log-likelihood, is greedy\)"),
    "too long": ('["x" * (1 << 22)]', "an answer of more than"),
    "nested without end": (
        'eval("[" * 90 + "]" * 90)',
        "1 answers to 20 requests",
    ),
}
