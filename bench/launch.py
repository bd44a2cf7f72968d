"""Start one command and write down what it used: `python -I -S launch.py RESULT_FD COMMAND...`.

A process of its own between the benchmark and the command, since Linux carries a parent's resident size over
into a child's `ru_maxrss` on exec: started from the benchmark itself, a command would never seem smaller than
the benchmark. This one is a bare interpreter (about 9 MiB), which is the least that can be measured.

Two lines go to the result: the command's `PID` at its start, `EXIT CPU_S WALL_S PEAK_RSS_KIB` at its end.
SIGTERM is passed on to the command.
"""

import os
import signal
import sys
import time

result_fd = int(sys.argv[1])
os.set_inheritable(result_fd, False)
started = time.monotonic()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the child is there to pass it on to
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setsigdef=[signal.SIGTERM])
signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
os.write(result_fd, f"{child}\n".encode())
_, status, used = os.wait4(child, 0)
wall_s = time.monotonic() - started
code = os.waitstatus_to_exitcode(status)
os.write(result_fd, f"{code} {used.ru_utime + used.ru_stime} {wall_s} {used.ru_maxrss}\n".encode())
