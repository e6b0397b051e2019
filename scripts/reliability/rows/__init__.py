"""The rows, in the order of the table."""

from reliability.row import Row
from reliability.rows import kills

ROWS: tuple[Row, ...] = (
    kills.ROW,
)
