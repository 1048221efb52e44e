"""`linnet` and `python` for a real shell, without 3 s of imports each.

Why    Pages have some 100 commands, with pipes and redirections.
How    `with WarmShell(folder, env) as bin:` puts programs named linnet and python into the folder `bin`, for PATH. Each
       passes its words, its working folder and its three streams through a socket to one process that has imported
       everything; that forks, and the fork is the command, `linnet.__main__.main` and nothing else.
       HF_HOME and HF_ENDPOINT are read at import, so they are those of `env`, not those of the shell.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(json.dumps([{name!r}, *sys.argv[1:]]).encode() + b"\\n" + os.getcwd().encode() + b"\\n")
answer = server.makefile()
child = int(answer.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(child, number))
sys.exit(int(answer.readline() or 99))
"""


class WarmShell:
    """The process that forks. A context manager; gives the folder for PATH."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env, self.address = folder, dict(env), str(folder / "socket")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        for name in ("linnet", "python"):
            program = self.folder / name
            program.write_text(PROGRAM.format(python=sys.executable, address=self.address, name=name))
            program.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_shell", self.address],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


# --- from here on: inside the process that forks, and in its forks ---


def serve(address: str) -> None:
    import datasets  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch

    import linnet.api
    import linnet.evaluation
    import linnet.inspection  # noqa: F401  (imported here once, for all forks)

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for those who answer.
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while True:
        asked, _ = listening.accept()
        if os.fork() == 0:
            answer(asked)
        asked.close()


def answer(asked: socket.socket) -> None:
    """Never returns: runs the command in a process of its own and sends its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(asked, 1, 3)
    file = asked.makefile("rw")
    words, folder = json.loads(file.readline()), file.readline().rstrip("\n")
    child = os.fork()
    if child == 0:
        run(words, folder, streams)
    file.write(f"{child}\n")
    file.flush()
    file.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    file.flush()
    os._exit(0)


def run(words: list[str], folder: str, streams: list[int]) -> None:
    """Never returns: the command."""
    code: Any = 99
    try:
        os.chdir(folder)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in enumerate("rww"))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = words
        if words[0] == "linnet":
            from linnet.__main__ import main

            main()
        else:
            import runpy

            sys.argv = words[1:]
            if words[1] == "-m":
                sys.argv = words[2:]
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[1], run_name="__main__")
            code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
