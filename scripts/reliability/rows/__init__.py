"""The rows, in the order of the table."""

from reliability.row import Row
from reliability.rows import hostile

ROWS: tuple[Row, ...] = (
    hostile.ROW,
)
