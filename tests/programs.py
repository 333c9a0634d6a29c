"""Python programs in new processes whose imports are done: a server imports once and forks for each program.

Importing torch, Lightning and Hydra takes longer than most programs of the tests. `python programs.py SOCKET`
is the server. Tests of start-up, of imports and of signals during it start an interpreter of their own.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = "compress decode encode evaluate fit_entropy report stream train truncate"
IMPORTED = ("hydra", "lightning", "soundfile", "codec.training.run", "codec.training.resolve", "codec.sweep")
IMPORTED += tuple(f"codec.commands.{name}" for name in COMMANDS.split())


class Program:
    """A program in a forked process, with the methods of `subprocess.Popen`; output goes to files."""

    def __init__(self, arguments: list[str], **options: Any):
        if arguments[0] != sys.executable:
            raise ValueError(f"expected a program for {sys.executable}, got {arguments[0]}")
        self.args = arguments
        self.folder = Path(tempfile.mkdtemp(dir=Path(server()).parent))
        request = {
            "arguments": arguments[1:],
            "cwd": str(options.get("cwd") or os.getcwd()),
            "env": dict(options.get("env") or os.environ),
            "new_session": options.get("start_new_session", False),
            "outputs": [str(self.folder / name) for name in ("stdout", "stderr")],
        }
        self.returncode: int | None = None
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server())
        self.replies = self.connection.makefile("rw")
        self.replies.write(json.dumps(request) + "\n")
        self.replies.flush()
        self.pid = int(self.replies.readline())

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while the program runs."""
        if self.returncode is None and Path(f"{self.folder}/status").exists():
            self.returncode = int(self.replies.readline())
            self.replies.close()
            self.connection.close()
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the exit status."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout, *self.outputs())
            time.sleep(0.01)
        return status

    def outputs(self) -> list[str]:
        """Text of standard output and standard error."""
        return [(self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait, and return the text of standard output and standard error."""
        self.wait(timeout)
        out, error = self.outputs()
        return out, error

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program as `subprocess.run(..., capture_output=True, text=True)` does."""
    program = Program(arguments, **options)
    out, error = program.communicate(options.get("timeout", 300))
    return subprocess.CompletedProcess(arguments, program.wait(), out, error)


@functools.cache
def server() -> str:
    """Socket of this process's server, which is started at the first call and ends with the process."""
    folder = tempfile.TemporaryDirectory(prefix="programs-")
    path = f"{folder.name}/socket"
    process = subprocess.Popen([sys.executable, __file__, path], start_new_session=True)
    atexit.register(folder.cleanup)
    atexit.register(process.kill)
    while not os.path.exists(path):
        if process.poll() is not None:
            raise RuntimeError("the server of programs ended")
        time.sleep(0.02)
    return path


def serve(path: str) -> dict[str, Any]:
    """Accept requests; returns one in each forked process that is to run it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen()
    listener.settimeout(1)
    parent = os.getppid()
    os.rename(path + ".new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if os.getppid() != parent:  # killed, so that it could not end this process
                os._exit(0)
            continue
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with connection.makefile("rw") as file:
            request = json.loads(file.readline())
            if not (child := os.fork()):
                break
            print(child, file=file, flush=True)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, file=file, flush=True)
            Path(request["outputs"][0]).with_name("status").touch()
        os._exit(0)
    os.close(connection.detach())
    return request


def become(request: dict[str, Any]) -> None:
    """Take the streams, folder, environment and arguments of a requested program."""
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    for stream, path in zip((1, 2), request["outputs"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["env"])
    paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]


def leave(status: object) -> NoReturn:
    """End the process without the destructors of C++, which wait for threads that a fork does not copy."""
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255 if isinstance(status, int) else int(status is not None))


def complain(error: BaseException) -> int:
    """Print a traceback; returns the exit status of an interpreter."""
    traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 1


def execute(kind: str, *rest: str) -> None:
    """Run `-c CODE`, `-m MODULE` or a script with its arguments."""
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    asked = serve(sys.argv[1])
    become(asked)
    try:
        execute(*asked["arguments"])
    except SystemExit as ended:
        leave(ended.code)
    except BaseException as error:
        leave(complain(error))
    leave(None)
