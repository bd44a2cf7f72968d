"""Start one command and write down what it used: `python -I -S launch.py RESULT_FD COMMAND...`.

A process of its own between the benchmark and the command, since Linux carries a parent's resident size over
into a child's `ru_maxrss` on exec: started from the benchmark itself, a command would never seem smaller than
the benchmark. This one is a bare interpreter (about 9 MiB), which is the least that can be measured.

Two lines go to the result: the command's `PID` at its start, and at its end

    EXIT CPU_S WALL_S PEAK_RSS_KIB OWN_PEAK_RSS_KIB

`PEAK_RSS_KIB` is the largest of the command and the children that it waited for, as the kernel kept it;
`OWN_PEAK_RSS_KIB` the command's alone: its high-water mark, read every 10 ms while it ran, so that only what
it grew by in its last 10 ms can be missed. SIGTERM is passed on to the command.
"""

import os
import select
import signal
import sys
import time

SAMPLE_MS = 10


def high_water_kib(pid: int) -> int:
    """VmHWM of a process; 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


def main() -> None:
    result_fd = int(sys.argv[1])
    os.set_inheritable(result_fd, False)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the child is there to pass it on to
    child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setsigdef=[signal.SIGTERM])
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    os.write(result_fd, f"{child}\n".encode())
    own_kib = 0
    ended = select.poll()
    ended.register(os.pidfd_open(child), select.POLLIN)
    while not ended.poll(SAMPLE_MS):
        own_kib = max(own_kib, high_water_kib(child))
    wall_s = time.monotonic() - started
    _, status, used = os.wait4(child, 0)
    figures = (
        os.waitstatus_to_exitcode(status),
        used.ru_utime + used.ru_stime,
        wall_s,
        used.ru_maxrss,
        own_kib,
    )
    os.write(result_fd, (" ".join(map(str, figures)) + "\n").encode())


if __name__ == "__main__":
    main()
