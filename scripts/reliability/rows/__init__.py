"""The rows, in the order of the table."""

from reliability.row import Row
from reliability.rows import five_kills, kills, sigterm, two_processes

ROWS: tuple[Row, ...] = (
    kills.ROW,
    five_kills.ROW,
    sigterm.ROW,
    two_processes.ROW,
)
