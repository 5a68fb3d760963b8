"""How a command ends: a user's mistake is one line and exit code 2, never a traceback of ours."""

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def cli(main: Callable[[], object]) -> Callable[[], None]:
    """Wrap the `main` of a command: ValueError, OSError and ImportError, which carry what came, what was wanted and
    the way out, become a last line `error: ...` on stderr and exit code 2; Ctrl-C and SIGTERM are exit code 130.

    `TIMM_ARAT_DEBUG=1` lets the traceback through. Other exceptions are our mistakes and keep theirs.
    """

    @functools.wraps(main)
    def command() -> None:
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's request, as Ctrl-C
            main()
        except KeyboardInterrupt:
            sys.exit(130)
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("TIMM_ARAT_DEBUG") == "1":
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if not frame.filename.startswith((_PACKAGE, str(Path(main.__code__.co_filename).parent))):
                # Nobody wrote this message for our user, so say where it comes from.
                print(
                    f"raised at {frame.filename}:{frame.lineno} (TIMM_ARAT_DEBUG=1 shows the way there)",
                    file=sys.stderr,
                )
            print(f"error: {_message(error)}", file=sys.stderr, flush=True)
            sys.exit(2)

    return command


def _message(error: BaseException) -> str:
    message = str(error).strip()
    if message.startswith("Caught ") and "Original Traceback" in message:
        # From a loader's worker, torch brings the whole traceback as the message; its last line is the worker's.
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split()) or type(error).__name__


def is_main_process() -> bool:
    """Whether this process should speak to the user: by the launcher's environment, since torch is not imported yet."""
    return os.environ.get("RANK", "0") == "0"
