"""How a program is told to stop: Ctrl-C, a job scheduler (SIGTERM), a terminal that closes (SIGHUP)."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # those that this system has
AGAIN = 1.0  # seconds in which more signals change nothing, so that what is unfinished can be removed


_late: list[int] | None = None  # what `undisturbed` puts off; None while it does not


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal; `status` is the exit status that shells expect of it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.status = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let every signal to stop end the block by an exception, as Ctrl-C does.

    What the program was started to ignore (`nohup`, a shell's background job) stays ignored. Outside the main
    thread, which alone may handle signals, nothing changes. After a signal the program is meant to end, so
    its handlers stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last: float | None = None

    def stop(number: int, _frame) -> None:
        nonlocal last
        if last is None or time.monotonic() - last >= AGAIN:
            last = time.monotonic()
            if _late is not None:
                _late.append(number)
            else:
                raise Stopped(number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    try:
        for number in heard:
            signal.signal(number, stop)
        yield
    finally:
        if last is None:
            for number in heard:
                signal.signal(number, before[number])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let what `stoppable` hears end a short block not before its end, so that it cleans up after itself.

    Raises:
        Stopped: at the end, if a signal came.
    """
    global _late
    before, _late = _late, _late or []
    try:
        yield
    finally:
        late, _late = _late, before
    if late and before is None:
        raise Stopped(late[0])
