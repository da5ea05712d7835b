"""Ctrl-C, SIGTERM and SIGHUP: the first asks the run to save and end, the second ends it at once."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# One wish can arrive as several signals: `timeout` signals its child and then the whole group, a shell that loses its
# terminal passes on the hang-up which the kernel has sent already.
_SAME_WISH_S = 0.5
# How long the main thread may take to leave by itself; it may be in XLA's compiler, where no Python runs.
_GRACE_S = 3.0


class StopRequests:
    """What the signals have asked for so far; see `stop_requests`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first one, while the run is held
        self._first_s: float | None = None
        self._held = False

    def hold(self) -> None:
        """From now on there is something to save: the first signal is no more than noted."""
        self._held = True

    def __bool__(self) -> bool:
        return self.received is not None

    def _on_signal(self, number: int, _: Any) -> None:
        # Nothing is printed: that can itself fail, as when Ctrl-C has ended the reader of a pipe.
        first_s, now = self._first_s, time.monotonic()
        if self._held and first_s is None:
            self.received, self._first_s = signal.Signals(number), now
        elif first_s is None or now - first_s > _SAME_WISH_S:
            self._first_s = first_s or now
            raise KeyboardInterrupt

    def _watch(self, signals: socket.socket, leave: Callable[[], object]) -> None:
        """Sees each signal when it comes, whatever the main thread does; ends when the other side is closed."""
        first_s: float | None = None
        deadline_s: float | None = None
        again = False
        while True:
            wait_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            ready, _, _ = select.select([signals], [], [], wait_s)
            if not ready:
                # What is to end by itself, and has not: at the second signal, or where nothing is to be saved.
                if again or not self._held:
                    leave()
                    return
                deadline_s = None  # held in the meantime: the one signal was noted
                continue
            if not signals.recv(4096):
                return
            now = time.monotonic()
            again = again or (first_s is not None and now - first_s > _SAME_WISH_S)
            first_s = first_s or now
            if deadline_s is None and (again or not self._held):
                deadline_s = now + _GRACE_S


@contextlib.contextmanager
def stop_requests(leave: Callable[[], object] | None = None) -> Iterator[StopRequests]:
    """Takes Ctrl-C, SIGTERM and SIGHUP over, where they are not ignored and this is the main thread.

    Until `hold` is called, and at a second signal, the main thread is interrupted.

    Args:
        leave: Ends the process; called in another thread when the interrupted main thread is still busy after 3 s.

    Raises:
        KeyboardInterrupt: Wherever the main thread is.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests  # whoever runs us there handles signals
        return
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    watch = threading.Thread(
        target=requests._watch, args=(ours, leave or (lambda: None)), name="stop-requests", daemon=True
    )
    # What the process was started to ignore stays ignored: `nohup preflight train` outlives its terminal.
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    with contextlib.closing(ours), contextlib.closing(theirs):
        watch.start()
        descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, requests._on_signal) for number in numbers}
        try:
            yield requests
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(descriptor)
            theirs.shutdown(socket.SHUT_RDWR)
            watch.join()
