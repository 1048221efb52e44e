"""Where the command `linnet` begins; `python -m linnet` is the same (torchrun starts it so).

What   `main` runs the command line and ends the process.
Why    Errors that speak to the user (`linnet.errors`) must become one line on stderr and the promised exit code,
       whichever verb raised them.
How    The verbs are in `linnet.cli`. What is not expected keeps its traceback: it is a bug.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

import typer

from linnet.cli import app
from linnet.errors import LinnetError, OutOfMemoryError, Stopped, is_out_of_memory


def main() -> None:
    """Run the command line and exit with the code that `linnet.errors` promises."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A model writes characters that not every terminal knows.
    try:
        code = app(standalone_mode=False) or 0
        if code == 130:  # Ctrl-C outside of a training, as this typer reports it
            _fail("stopped; the same command goes on", code)
    except (LinnetError, Stopped) as error:
        code = _fail(str(error), error.exit_code)
    except typer.Abort:  # Ctrl-C outside of a training: nothing is to be saved.
        code = _fail("stopped; the same command goes on", 130)
    except BrokenPipeError:  # The reader of `linnet ... | head` has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (MemoryError, OSError, RuntimeError) as error:
        code = _fail_on_machine(error)
    except Exception as error:
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()  # A usage error of the command line itself.
        code = error.exit_code
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"linnet: {message}", file=sys.stderr)
    return code


def _fail_on_machine(error: MemoryError | OSError | RuntimeError) -> int:
    """Memory and disk: what the machine refused, in one sentence. Anything else is a bug and keeps its traceback."""
    text = str(error)
    if is_out_of_memory(error):
        advice = "set a smaller train.micro_batch_size or train.block_size, or take a smaller model"
        return _fail(
            f"The memory does not suffice ({text.splitlines()[0][:120] if text else 'malloc'}); {advice}.",
            OutOfMemoryError.exit_code,
        )
    if isinstance(error, OSError) and error.filename is not None:
        code = 4 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) else 1
        return _fail(f"{error.filename}: {error.strerror}; check the path and its rights.", code)
    raise error


if __name__ == "__main__":
    main()
