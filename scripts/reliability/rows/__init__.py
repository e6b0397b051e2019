"""The rows, in the order of the table."""

from reliability.row import Row

ROWS: tuple[Row, ...] = ()
