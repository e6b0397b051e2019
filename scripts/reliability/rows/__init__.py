"""The rows, in the order of the table."""

from reliability.row import Row
from reliability.rows import malformed

ROWS: tuple[Row, ...] = (
    malformed.ROW,
)
