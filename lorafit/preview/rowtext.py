"""One row as styled text: what is trained, where tokens end, and every character that is there."""

from collections.abc import Sequence

from rich.text import Text

from lorafit.preview.pieces import Piece, runs_of
from lorafit.preview.visible import split_hidden, written_out

ROW_TOKENS = 320  # of a row that are shown, or little more; the others are counted
LEAST_SHOWN = 6  # of a run of tokens, on either side of what is left out
LEAST_LEFT_OUT = 12  # fewer are shown: the remark would be as long

TRAINED, SPECIAL, WRITTEN_OUT, QUIET = "bold green", "reverse", "red", "dim"
OPEN, CLOSE = "⟦", "⟧"
BETWEEN_TOKENS = "│"


def row_text(pieces: Sequence[Piece], *, in_colour: bool, separate: bool = False) -> Text:
    """The tokens of a row; of a long one the ends of each run that is trained alike.

    Without colour, brackets stand around what is trained. `separate`: a line between tokens.
    """
    runs = runs_of(pieces)
    kept = _kept([len(run) for run in runs])
    text = Text()
    for run in runs:
        trained = run[0].supervised
        if trained and run[0].weight != 1:
            text.append(f"⟨×{run[0].weight:g}⟩", WRITTEN_OUT)
        if trained and not in_colour:
            text.append(OPEN)
        _append_run(text, run, kept, in_colour, separate)
        if trained and not in_colour:
            text.append(CLOSE)
    return text


def _kept(lengths: Sequence[int]) -> int:
    """How many pieces to show at each end of every run, of so many pieces each."""
    for kept in range(ROW_TOKENS, LEAST_SHOWN, -1):
        if sum(min(length, 2 * kept) for length in lengths) <= ROW_TOKENS:
            return kept
    return LEAST_SHOWN


def _append_run(text: Text, run: Sequence[Piece], kept: int, in_colour: bool,
                separate: bool) -> None:
    left_out = range(kept, len(run) - kept)
    if len(left_out) < LEAST_LEFT_OUT:
        left_out = range(0)
    trained = run[0].supervised
    whole = "".join(piece.text for piece in run)
    first_word = len(whole) - len(whole.lstrip(" ")) if trained else 0
    last_word = len(whole.rstrip(" ")) if trained else len(whole)
    position = 0
    for i, piece in enumerate(run):
        if left_out and i == left_out.start:
            tokens = sum(len(run[n].ids) for n in left_out)
            text.append(f" ⟨… {tokens:,} {'trained ' if trained else ''}tokens …⟩ ", QUIET)
        if i not in left_out:
            style = _style(piece, i % 2 == 1, in_colour)
            edges = (first_word - position, last_word - position)
            for part, is_written_out in _spelled(piece, edges, in_colour):
                text.append(part, f"{style} {WRITTEN_OUT}" if is_written_out else style)
            if separate:
                text.append(BETWEEN_TOKENS, QUIET)
        position += len(piece.text)


def _style(piece: Piece, is_odd: bool, in_colour: bool) -> str:
    """Every other token is underlined, so that one ends where the line does."""
    styles = [TRAINED if piece.supervised else "", SPECIAL if piece.is_special else "",
              "underline" if is_odd and in_colour else ""]
    return " ".join(style for style in styles if style)


def _spelled(piece: Piece, edges: tuple[int, int], in_colour: bool) -> list[tuple[str, bool]]:
    """The text of a piece in parts, each with whether it is a character written out.

    Spaces before the first of `edges` and from the second on are shown as ␣.
    """
    if not piece.is_whole:
        return [(f"⟨part of {''.join(part for part, _ in _shown(piece.text, in_colour))}⟩", True)]
    first, last = (min(max(edge, 0), len(piece.text)) for edge in edges)
    if first >= last:
        return _shown(piece.text.replace(" ", "␣"), in_colour)
    return _shown(piece.text[:first].replace(" ", "␣") + piece.text[first:last]
                  + piece.text[last:].replace(" ", "␣"), in_colour)


def _shown(text: str, in_colour: bool) -> list[tuple[str, bool]]:
    parts = []
    for part, is_hidden in split_hidden(text):
        if is_hidden:
            parts.append((written_out(part), True))
            continue
        if not in_colour:  # the brackets have a meaning of their own
            part = part.replace(OPEN, written_out(OPEN)).replace(CLOSE, written_out(CLOSE))
        parts.append((part.replace("\n", "↵\n").replace("\t", "⇥"), False))
    return parts
