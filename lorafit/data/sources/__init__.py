"""Rows of files and hub data sets, each with the place it stands at.

    locations ─► compression ─► one module a kind of file ─► raw blocks ─► rows

Reading is in two halves. `open_blocks` cuts a source into small blocks of raw records and holds no
more than one of them, however large the source is; `parse_block` turns one into rows and problems,
in any process. A new kind of file is one module with a `read`, named in `kinds.py`.
"""

from lorafit.data.sources.blocks import RawBlock
from lorafit.data.sources.kinds import READERS
from lorafit.data.sources.locations import Location, source_files
from lorafit.data.sources.reading import content_hash, open_blocks, parse_block, read_rows

__all__ = ["READERS", "Location", "RawBlock", "content_hash", "open_blocks", "parse_block",
           "read_rows", "source_files"]
