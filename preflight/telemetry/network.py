"""Whether a machine answers, asked with a limit: nothing here may wait for the network."""

from __future__ import annotations

import queue
import threading

PING_S = 3.0


def unreachable(host: str, port: int) -> str | None:
    """Why a connection cannot be made within `PING_S` seconds, even where the look-up of the name hangs.

    Returns:
        The reason; None where it can be made.
    """
    import socket  # late: every start would wait for it

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PING_S).close()
            answers.put(None)
        except OSError as error:
            answers.put(str(error))

    threading.Thread(target=connect, name=f"ping {host}", daemon=True).start()
    try:
        return answers.get(timeout=PING_S)
    except queue.Empty:
        return "no answer"
