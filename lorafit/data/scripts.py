"""Which script a text is written in."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

SCRIPTS = ("none", "latin", "cyrillic", "greek", "han", "japanese", "hangul", "arabic", "hebrew",
           "devanagari", "bengali", "tamil", "telugu", "thai", "georgian", "armenian", "other")
CHARACTERS_LOOKED_AT = 400
FEW_LETTERS = 8  # a name or a formula; says nothing about the language of the row
LATIN_COUNTS = 3  # this many Latin letters count as one: code and names are written in them

_NONE, _LATIN = 0, 1
_HAN, _JAPANESE = SCRIPTS.index("han"), SCRIPTS.index("japanese")
_A_FEW_LATIN = re.compile(f"(?:[^A-Za-z]*[A-Za-z]){{{FEW_LETTERS}}}")
_BY_NAME = {**{name: number for number, name in enumerate(SCRIPTS)},
            "cjk": _HAN, "hiragana": _JAPANESE, "katakana": _JAPANESE}


def script_of(text: str) -> int:
    """Index into SCRIPTS of the script that most letters at the start of `text` belong to; 0 where
    there are hardly any letters."""
    text = text[:CHARACTERS_LOOKED_AT]
    if text.isascii():
        return _LATIN if _A_FEW_LATIN.match(text) else _NONE
    scripts: dict[int, int] = {}
    for letter, times in Counter(text).items():
        if script := _script_of_letter(letter):
            scripts[script] = scripts.get(script, 0) + times
    if _HAN in scripts and _JAPANESE in scripts:  # Japanese writes with both
        scripts[_JAPANESE] += scripts.pop(_HAN)
    if sum(scripts.values()) < FEW_LETTERS:
        return _NONE
    if _LATIN in scripts:
        scripts[_LATIN] //= LATIN_COUNTS
    return max(scripts, key=lambda script: scripts[script])


@lru_cache(maxsize=8192)
def _script_of_letter(letter: str) -> int:
    if not letter.isalpha():
        return _NONE
    if letter.isascii():
        return _LATIN
    name = unicodedata.name(letter, "OTHER").split()[0].split("-")[0].lower()
    return _BY_NAME.get(name, len(SCRIPTS) - 1)
