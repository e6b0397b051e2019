"""The rows, in the order of the table."""

from reliability.row import Row
from reliability.rows import (
    damaged,
    failed_writes,
    five_kills,
    hostile,
    kills,
    malformed,
    nonfinite,
    out_of_memory,
    saving,
    sigterm,
    twice,
    two_processes,
)

ROWS: tuple[Row, ...] = (
    kills.ROW,
    five_kills.ROW,
    sigterm.ROW,
    two_processes.ROW,
    damaged.ROW,
    failed_writes.ROW,
    malformed.ROW,
    nonfinite.ROW,
    out_of_memory.ROW,
    hostile.ROW,
    twice.ROW,
    saving.COST,
    saving.RESUME,
)
