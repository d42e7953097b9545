"""A task of a job that says which signals it gets, with a child that does so from a session of its own."""

import os
import signal
import subprocess
import sys
import time
from types import FrameType

WORDS = f"{os.environ['SLURMD_NODENAME']} {sys.argv[1]}"


def tell(number: int, frame: FrameType | None) -> None:
    # one write a line, so that those of four processes do not mix
    os.write(1, f"{WORDS} {signal.Signals(number).name}\n".encode())


def main() -> None:
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, tell)
    if sys.argv[1] == "agent":
        subprocess.Popen([sys.executable, __file__, "worker"], start_new_session=True)
    os.write(1, f"{WORDS} listens\n".encode())
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
