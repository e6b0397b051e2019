"""A chat template is somebody's program: it must not hang or fill the machine, nor look around."""

import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import pytest

from lorafit.data.chat.program import MOST_LATE, Program
from lorafit.data.examples import BadRow
from lorafit.errors import UserError

DOUBLED = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
HOSTILE = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
                     "{% endfor %}",
    "loops that only filter": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}"
                              "{% endfor %}{% endfor %}",
    "loops that look in a list for what they filter":
        "{% set l = range(99999) | list %}{% for b in l if 'a' in l %}{% endfor %}",
    "huge range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "doubled by +": DOUBLED + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": DOUBLED + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled by a block": DOUBLED + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
                                    "{% set ns.x = y %}{% endfor %}",
    "doubled by join": DOUBLED + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubled by str.join": DOUBLED + "{% set ns.x = ''.join([ns.x, ns.x]) %}{% endfor %}",
    "doubled by replace": DOUBLED + "{% set ns.x = ns.x.replace('a', 'aaaa') %}{% endfor %}",
    "doubled by format": DOUBLED + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubled by str.format": DOUBLED + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubled lists": DOUBLED + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "doubled lists as JSON": DOUBLED + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
                                       "{{ ns.x | tojson }}",
    "one text many times": "{% set s = 'a' * 1000000 %}{% set l = [s] * 100000 %}{{ l | join }}",
    "kept slices": "{% set s = 'a' * 60000000 %}{% set ns = namespace(l=[]) %}"
                   "{% for i in range(99999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "literal text in a loop": "{% for a in range(99999) %}{% for b in range(9999) %}"
                              + "x" * 10000 + "{% endfor %}{% endfor %}",
    "literal text in a block": "{% set y %}{% for a in range(99999) %}" + "x" * 100000
                               + "{% endfor %}{% endset %}{{ y }}",
    "words of a long text": "{{ ('a ' * 9999999) | title | length }}",
    "lines of a long text": "{{ ('a ' * 99999999) | wordwrap(1) | length }}",
    "pieces of a long text": "{% set l = ('a ' * 99999999).split(' ') %}{{ l | length }}",
    "characters of a long text": "{{ ('a' * 99999999) | list | length }}",
    "power": "{{ 9 ** 999999999 }}",
    "products": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
                "{% endfor %}{{ ns.x }}",
    "text times a number": "{{ 'a' * 10 ** 10 }}",
    "a number times text": "{{ 10 ** 10 * 'a' }}",
    "centred": "{{ 'a' | center(10000000000) }}",
    "centred by a method": "{{ 'a'.center(10000000000) }}",
    "indented": "{{ ('\\n' * 10000000) | indent(90000) }}",
    "wide format": "{{ '%99999999999d' % 1 }}",
    "wide format filter": "{{ '%99999999999d' | format(1) }}",
    "wide str.format": "{{ '{:99999999999}'.format(1) }}",
    "batches": "{{ [1] | batch(1000000000, 'x') | list }}",
    "rounding": "{{ 1.5 | round(1000000000, 'floor') }}",
    "folded when compiled": "{{ 'a'" + " | replace('a', 'aaaaaaaaaaaaaaaa')" * 12 + " }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}"
                           "{% endif %}{% endmacro %}{{ f(60) }}",
    "Python's classes": "{{ ''.__class__ }}",
    "Python's classes by name": "{{ ''['__class__'] }}",
    "Python's classes by filter": "{{ '' | attr('__class__') }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "classes in a format": "{{ '{0.__class__}'.format('') }}",
    "marks of its own": "{{ 'turn' | mark(1, messages[0]) }}",
    "changed messages": "{{ messages.append(1) }}",
    "no syntax": "{% for %}",
    "deep nesting": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
}
LIMIT_S, PATIENCE_S = 0.7, 5.0


def refused(source: str) -> BadRow:
    program = Program(source, date(2024, 1, 2), LIMIT_S)
    with pytest.raises(BadRow) as caught:
        program.render({"messages": [{"role": "user", "content": "q"}]})
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_a_bad_row_within_seconds(name: str) -> None:
    start = time.monotonic()
    bad = refused(HOSTILE[name])
    assert bad.what.startswith("the chat template refuses the row: ")
    assert bad.remedy
    assert time.monotonic() - start < PATIENCE_S


@pytest.mark.long
def test_hostile_templates_do_not_fill_the_memory() -> None:
    """All of them in a process of their own, which says how much it needed at most."""
    code = """
import resource
from test_template_limits import HOSTILE, Program, date, BadRow
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for name, source in HOSTILE.items():
    if "loops" in name or "recursion" in name:
        continue  # these take time, not memory
    try:
        Program(source, date(2024, 1, 2)).render({"messages": []})
    except BadRow:
        pass
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parent)
    assert int(done.stdout) < 1536, "MiB"


def test_limits_hold_in_a_thread() -> None:
    found: list[BadRow] = []
    thread = threading.Thread(target=lambda: found.append(refused(HOSTILE["endless loops"])))
    thread.start()
    thread.join(PATIENCE_S)
    assert "takes longer" in found[0].what


def test_a_template_that_is_slow_for_every_row_ends_the_reading() -> None:
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    program = Program("{% if messages %}" + slow + "{% endif %}", date(2024, 1, 2), 0.05)
    for _ in range(2):
        for _ in range(MOST_LATE - 1):
            with pytest.raises(BadRow, match="takes longer"):
                program.render({"messages": [1]})
        program.render({"messages": []})  # one that is fine begins the count anew
    for _ in range(MOST_LATE - 1):
        with pytest.raises(BadRow):
            program.render({"messages": [1]})
    with pytest.raises(UserError, match="too slow in row after row"):
        program.render({"messages": [1]})


def test_a_failed_rendering_leaves_the_template_usable() -> None:
    program = Program("{% for i in range(messages | length * 99999) %}{% for j in range(99999) %}"
                      "{% endfor %}{% endfor %}done", date(2024, 1, 2), LIMIT_S)
    with pytest.raises(BadRow):
        program.render({"messages": [1]})
    assert program.render({"messages": []}) == "done"


@pytest.mark.parametrize(("source", "said"), [
    ("one\n{{ raise_exception('Only users!') }}", "Only users! (line 2 of the template)"),
    ("one\ntwo\n{{ messages[9]['content'] }}", "(line 3 of the template)"),
    ("one\n{% if %}", "(line 2 of the template)"),
])
def test_an_error_says_what_the_template_says_and_where(source: str, said: str) -> None:
    assert said in refused(source).what


def test_a_long_conversation_is_within_the_limits() -> None:
    program = Program("{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '\n' }}"
                      "{% endfor %}", date(2024, 1, 2))
    messages = [{"role": "user", "content": "word " * 20000} for _ in range(100)]
    assert len(program.render({"messages": messages})) > 9_000_000
