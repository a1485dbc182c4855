"""Running a command: its exit status, and mistakes as one line."""

import os
import signal
import sys
from collections.abc import Callable

from backbone.errors import InputError
from train_utils.io.memory import first_line, is_lack_of_memory
from train_utils.io.plain_text import one_line
from train_utils.io.unfinished import Stopped

EXIT_OK, EXIT_SOME_UNUSABLE, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
FEWER_WORKERS = (
    "killed: most likely the machine has too little memory, give fewer --workers (0: none); bus error: /dev/shm is "
    "full; then --resume auto"
)


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a script's `main` and returns its exit status; scripts end with `sys.exit(run_command(main))`.

    0 when `main` returns None, what it returns otherwise; an InputError, or an OSError that names a file,
    becomes one `error: ...` line on stderr and 2; Ctrl-C 130, another signal while something is written 128 + its
    number. Any other exception is a fault of the program and keeps its traceback.
    """
    try:
        return main() or EXIT_OK
    except InputError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        if _is_main():
            print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except Stopped as stop:
        if _is_main():
            print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr, flush=True)
        return stop.code
    except BrokenPipeError:
        # the reader of a pipe (`| head`) has gone; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SOME_UNUSABLE
    except OSError as error:  # of a file that the user named: no permission, too long a name
        if error.filename is None:
            raise
        print(one_line(f"error: {error.filename}: {error.strerror}"), file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
    except (RuntimeError, MemoryError) as error:
        if is_lack_of_memory(error):
            said = f"out of memory ({first_line(error)}); close other programs, or give smaller or fewer images"
        elif death := _of_a_loader(error):
            said = f"{first_line(death).rstrip('. ')}: a process that reads images has died; {FEWER_WORKERS}"
        else:
            raise
        print(f"error: {said}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT


def _of_a_loader(error: BaseException | None) -> BaseException | None:
    """Returns what tells of the death of a process that loads images; None for an error of another cause.

    It is raised wherever the main process is when its child dies, so another error may stand before it: torch.save's,
    whose file then has no end.
    """
    while error is not None and not (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)):
        error = error.__cause__ or error.__context__
    return error


def _is_main() -> bool:
    """Returns whether this is the first process of a command, which speaks for those that got the same signal."""
    return os.environ.get("RANK", "0") == "0"
