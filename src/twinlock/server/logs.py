"""The server's log: one line per event on standard error, `key=value`, nothing secret.

    2026-11-21T22:50:00.123Z level=info at=twinlock.server "start address=http://127.0.0.1:8000 ..."

The message is a JSON string, so that nothing that a device sent can forge a line; a trace follows in the same
line the same way. Tokens, signatures, keys and bodies are never handed to the log.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

_QUIET: Final = ("uvicorn", "uvicorn.error", "alembic", "asyncio")


class LineFormatter(logging.Formatter):
    """See the module docstring."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = (
            f"{at}.{int(record.msecs):03d}Z level={record.levelname.lower()} at={record.name} "
            f"{json.dumps(record.getMessage())}"
        )
        if record.exc_info:
            line += f" trace={json.dumps(self.formatException(record.exc_info))}"
        return line


def log_to_stderr() -> None:
    """Sends the log of this process to standard error; calling it again changes nothing."""
    root = logging.getLogger()
    if any(isinstance(handler.formatter, LineFormatter) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
