"""Kinds of malformed data, each under a good recipe."""

import csv
import gzip
import io
import json
import lzma
from random import Random
from typing import Any

from reliability.malformed.case import (
    GOOD_ROWS,
    ROWS,
    Case,
    Kind,
    Special,
    with_rows,
)
from reliability.malformed.rows import FAULTS, FLAT, GOOD, as_lines, good, text


def one_bad_row(random: Random) -> Case:
    """One row of many has a fault that its format does not allow (rows.py says which); the rows
    before it are good, so the format is known."""
    rows, form, at = _with_fault(random)
    return _packed(random, as_lines(rows), f":{at + 1}:", form)


def one_bad_row_in_json(random: Random) -> Case:
    """The same in a list of objects."""
    rows, form, at = _with_fault(random)
    raw = json.dumps({"data": rows} if random.random() < 0.3 else rows,
                     indent=random.choice([None, 2])).encode()
    return with_rows({"rows.json": raw}, f"rows.json row {at + 1}:", "rows.json",
                     "--set", f"data.format={form}")


def all_rows_bad(random: Random) -> Case:
    """Every row has the same fault, while the recipe names the format."""
    fault, forms = random.choice(list(FAULTS.values()))
    form = random.choice(forms)
    rows = good(form, random.randrange(1, 30), random)
    for row in rows:
        fault(row, form, random)
    return with_rows({ROWS: as_lines(rows)}, f"{ROWS}", ROWS, "--set", f"data.format={form}")


def late_bad_row(random: Random) -> Case:
    """The bad row stands hundreds or thousands of rows down."""
    form = random.choice(list(GOOD))
    rows = good(form, random.randrange(150, 6000), random)
    at = random.randrange(len(rows) // 2, len(rows))
    rows[at] = random.choice([{"other": 1}, {}, {"prompt_": "a"}])
    return with_rows({ROWS: as_lines(rows)}, f"{ROWS}:{at + 1}:", ROWS)


def bad_held_out_row(random: Random) -> Case:
    """The training rows are fine; one of the held-out rows is not."""
    rows, form, at = _with_fault(random)
    return with_rows({ROWS: GOOD_ROWS, "held.jsonl": as_lines(rows)}, f"held.jsonl:{at + 1}:", ROWS,
                     "--set", f"data.eval={{path: held.jsonl, format: {form}}}")


def one_bad_source(random: Random) -> Case:
    """Several sources, of which one is missing, empty or has a bad row."""
    bad = random.choice([b"", b"\n \n", b"{", b'{"prompt": "a"}\n', b"[]\n", None])
    files = {"a.jsonl": GOOD_ROWS, "c.csv": b"prompt,completion\nq,a\n"}
    if bad is not None:
        files["b.jsonl"] = bad
    names = random.sample(["a.jsonl", "b.jsonl", "c.csv"], 3)
    return with_rows(files, "b.jsonl", f"[{', '.join(names)}]")


def broken_line(random: Random) -> Case:
    """A line that is no JSON: cut off (no part of an object is a value), or written otherwise."""
    form = random.choice(list(GOOD))
    rows = good(form, random.randrange(2, 40), random)
    at = random.randrange(len(rows))
    lines = as_lines(rows).splitlines()
    line = lines[at]
    lines[at] = random.choice([
        line[: random.randrange(1, len(line))], line[:-1] + b",}", line.replace(b'"', b"'"),
        line + b" // note", line + b",", line + line, line[1:], b"<" + line, b"... " + line,
        line.replace(b":", b"=", 1), line + b"}", b"[" + line + b"]", b"# " + line, b"NaN", b"5",
        b'"text"', b"null", b"undefined", line.replace(b": ", b": None, ", 1), b"\\" + line,
        line[:1] + b'"x": 1, "x": 2, ' + line[1:], b"[" * 3000, b"9" * 5000,
    ])
    return _packed(random, b"\n".join(lines) + b"\n", f":{at + 1}:", form)


def wrong_bytes(random: Random) -> Case:
    """NUL, or bytes that UTF-8 does not have, within a line."""
    rows = good(random.choice(list(GOOD)), random.randrange(2, 40), random)
    lines = as_lines(rows).splitlines()
    at = random.randrange(len(lines))
    middle = random.randrange(1, len(lines[at]))
    stray = random.choice([b"\0", b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8", b"\x80", b"\0\0\0"])
    lines[at] = lines[at][:middle] + stray + lines[at][middle:]
    return _packed(random, b"\n".join(lines) + b"\n", f":{at + 1}:", None)


def other_encoding(random: Random) -> Case:
    """A whole file in UTF-16, UTF-32, or in Latin-1 with letters that are no UTF-8."""
    rows = [{"prompt": "für größere", "completion": "très à"} for _ in range(3)]
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    name = random.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"])
    end = random.choice(["jsonl", "json", "txt", "csv"])
    if end == "csv":
        plain = "prompt,completion\nfür größere,très à\n"
    return with_rows({f"rows.{end}": plain.encode(name)}, f"rows.{end}", f"rows.{end}")


def nothing_in_it(random: Random) -> Case:
    """No row at all."""
    name, raw = random.choice([
        (ROWS, b""), (ROWS, b"\n\n  \n"), (ROWS, b"\xef\xbb\xbf"), ("rows.json", b""),
        ("rows.json", b"[]"), ("rows.json", b'{"data": []}'), ("rows.csv", b""),
        ("rows.csv", b"prompt,completion\n"), ("rows.tsv", b"prompt\tcompletion\n\n\n"),
        ("rows.txt", b""), ("rows.txt", b"\n\n"), ("rows.jsonl.gz", gzip.compress(b"")),
        ("rows.jsonl.xz", lzma.compress(b"\n")), ("rows.parquet", _table([], "parquet")),
        ("rows.arrow", _table([], "arrow")), ("rows.jsonl.gz", b""), ("rows.parquet", b""),
        ("rows.arrow", b""), ("rows.jsonl.zst", b""),
    ])
    return with_rows({name: raw}, name, name)


def unknown_columns(random: Random) -> Case:
    """Columns that no format has, in any kind of file."""
    names = random.sample(["frage", "antwort", "src", "tgt", "review", "stars", "id", "url", "code",
                           "dialogue", "summary", "Prompt", "Completion", "q", "a"], 3)
    rows = [{name: text(random) for name in names} for _ in range(random.randrange(1, 20))]
    name, raw = _file_of(random, rows)
    return with_rows({name: raw}, name, name)


def ragged_rows(random: Random) -> Case:
    """CSV or TSV in which a row has more or fewer values than the header, or a quote stays open."""
    separator, end = random.choice([(",", "csv"), ("\t", "tsv")])
    form = random.choice(FLAT[:2])
    rows = good(form, random.randrange(2, 30), random)
    lines = [separator.join(row) for row in [list(rows[0]), *(row.values() for row in rows)]]
    at = random.randrange(1, len(lines))
    lines[at] = random.choice([
        lines[at] + separator + "more", lines[at] + separator * 3, lines[at].split(separator)[0],
        separator + lines[at], '"' + lines[at], lines[at].replace(separator, f'{separator}"', 1),
        '"a" b' + separator + "c",
    ])
    where = f"rows.{end}:{at + 1}"
    return with_rows({f"rows.{end}": "\n".join(lines).encode() + b"\n"}, where, f"rows.{end}")


def wrong_header(random: Random) -> Case:
    """A header with a name twice or none, of another separator, or missing."""
    raw = random.choice([
        b"prompt,prompt\na,b\n", b"prompt,\na,b\n", b",prompt,completion\n0,a,b\n",
        b"prompt;completion\na;b\n", b"prompt|completion\na|b\n", b"a,b\nc,d\n",
        b"prompt\tcompletion\na\tb\n", b"prompt completion\na b\n", b"# rows\nprompt,completion\n",
        b"PROMPT,COMPLETION\na,b\n", b"\nprompt,completion\na,b,c\n",
    ])
    name = "rows.csv"
    return with_rows({name: raw}, name, name)


def cut_archive(random: Random) -> Case:
    """A compressed file without its end: none of the formats is complete without it."""
    name, whole = random.choice([
        ("rows.jsonl.gz", gzip.compress(as_lines(good("text", 50, random)))),
        ("rows.jsonl.xz", lzma.compress(as_lines(good("text", 50, random)))),
        ("rows.jsonl.zst", _zstd(as_lines(good("text", 50, random)))),
        ("rows.parquet", _table(good("text", 50, random), "parquet")),
        ("rows.json.gz", gzip.compress(json.dumps(good("alpaca", 30, random)).encode())),
        ("rows.csv.gz", gzip.compress(b"prompt,completion\n" + b"a,b\n" * 900)),
    ])
    return with_rows({name: whole[: random.randrange(1, len(whole))]}, name, name)


def damaged_archive(random: Random) -> Case:
    """One flipped bit where a checksum covers it: gzip and xz have one of the whole content.

    Not in the last byte of gzip's data, which may be filled up with bits that mean nothing.
    """
    if random.random() < 0.5:
        name, raw = "rows.jsonl.gz", bytearray(gzip.compress(as_lines(good("text", 50, random))))
        at = random.randrange(10, len(raw) - 9)  # between the header and the checksum
    else:
        name, raw = "rows.jsonl.xz", bytearray(lzma.compress(as_lines(good("text", 50, random))))
        at = random.randrange(12, len(raw) // 2)
    raw[at] ^= 1 << random.randrange(8)
    return with_rows({name: bytes(raw)}, name, name)


def wrong_ending(random: Random) -> Case:
    """A file whose content is not what its ending says, or whose ending says nothing."""
    lines = as_lines(good("text", 5, random))
    table = _table(good("text", 5, random), "parquet")
    name, raw = random.choice([
        ("rows.jsonl", gzip.compress(lines)), ("rows.jsonl.gz", lines), ("rows.parquet", lines),
        ("rows.arrow", lines), ("rows.jsonl", table), ("rows.json", table), ("rows.xz", lines),
        ("rows.jsonl.zst", gzip.compress(lines)), ("rows.arrow", table), ("rows.txt", table),
        ("rows.csv", table), ("rows.jsonl", b"%PDF-1.7\n\xff\xfe"), ("rows.json", b"<html>\n"),
        ("rows.xml", b"<rows/>"), ("rows.docx", b"PK\3\4"), ("rows.yaml", b"- text: a\n"),
        ("rows.pkl", b"\x80\x04."), ("rows.jsonl", b"[\n" + lines.replace(b"}\n", b"},\n") + b"]"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    ])
    return with_rows({name: raw}, name, name)


def no_list(random: Random) -> Case:
    """JSON that is no list of objects, or goes on after it, or ends before it does."""
    whole = json.dumps(good("alpaca", 5, random), indent=random.choice([None, 1])).encode()
    raw = random.choice([
        b"5", b'"rows"', b"null", b"true", b"[1, 2]", b'["a"]', b"[[]]", whole + b"]",
        whole + whole, whole[:-1], whole[: random.randrange(1, len(whole))], b"{" + whole + b"}",
        whole[:-1] + b",]", b"[null]", b'{"a": {"b": 1}}', whole.replace(b",", b"", 1),
        whole.replace(b'"', b"'"), b"[" * 5000, b'{"data": [], "more": []}', b"[{}]", b"{}",
    ])
    return with_rows({"rows.json": raw}, "rows.json", "rows.json")


def no_file(random: Random) -> Case:
    """What is named is not there, is no file, or holds none."""
    files: dict[str, Any]
    files, named, place = random.choice([
        ({}, "rows.jsonl", "rows.jsonl"), ({}, "data/*.jsonl", "data/*.jsonl"),
        ({"d": Special.DIRECTORY}, "d", "d"),
        ({"d.jsonl": Special.DIRECTORY}, "d.jsonl", "d.jsonl"),
        ({"p.jsonl": Special.PIPE}, "p.jsonl", "p.jsonl"),
        ({"l.jsonl": Special.DANGLING_LINK}, "l.jsonl", "l.jsonl"),
        ({"d/readme.md": b"x"}, "d", "d"), ({"d/.hidden.jsonl": GOOD_ROWS}, "d", "d"),
        ({"d/a.jsonl": GOOD_ROWS, "d/b.jsonl": b"{"}, "d", "d/b.jsonl:1"),
        ({"d/a.jsonl": GOOD_ROWS, "d/b.csv": b"x,y\n1,2\n"}, "d", "d/b.csv"),
        ({ROWS: GOOD_ROWS}, f"{{path: {ROWS}, split: train}}", ROWS),
        ({ROWS: GOOD_ROWS}, f"{{path: {ROWS}, revision: main}}", ROWS),
        ({"rows": b"x"}, "./rows", "rows"), ({"d/e/f.xml": b"x"}, "d", "d"),
    ])
    return with_rows(files, place, named)


def wrong_mapping(random: Random) -> Case:
    """The recipe names a column that is not there, a format that needs others, or one that has no
    use for what is named."""
    setting, place = random.choice([
        ("data.columns={prompt: question, completion: answer}", ROWS),
        ("data.columns={completion: compleetion}", ROWS), ("data.format=chat", ROWS),
        ("data.format=preference", ROWS), ("data.format=text", ROWS), ("data.format=alpaca", ROWS),
        ("data.format=sharegpt", ROWS), ("data.format=judged", ROWS),
        ("data.columns={text: body}", ROWS), ("data.columns={label: prompt}", ROWS),
    ])
    return with_rows({ROWS: GOOD_ROWS}, place, ROWS, "--set", setting)


def wrong_table(random: Random) -> Case:
    """A table whose columns are numbers, lists or empty where a format has text."""
    end = random.choice(["parquet", "arrow"])
    values = random.choice([
        [{"prompt": 1, "completion": 2}], [{"text": 1.5}], [{"text": [1, 2]}], [{"text": None}],
        [{"prompt": "a", "completion": None}], [{"messages": ["a"]}], [{"text": b"raw"}],
        [{"messages": [{"role": "user", "content": "a"}]}], [{"text": True}], [{"a": "b"}],
        [{"messages": [{"role": "owl", "content": "a"}]}], [{"instruction": "a", "output": ""}],
    ])
    rows = values * random.randrange(1, 50)
    return with_rows({f"rows.{end}": _table(rows, end)}, f"rows.{end} row 1:", f"rows.{end}")


def endless_line(random: Random) -> Case:
    """A line or a value beyond the limit of 64 MiB: a file that lost its line breaks."""
    name = random.choice(["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz", "rows.txt.gz"])
    opening = {"rows.json.gz": b'[{"text": "', "rows.csv.gz": b'text\n"'}.get(name, b'{"text": "')
    raw = gzip.compress(opening + b"a" * (66 << 20), compresslevel=1)
    return with_rows({name: raw}, name, name)


def nothing_to_learn(random: Random) -> Case:
    """One of the assistant's turns says nothing, or the weights leave nothing to train."""
    rows = good("chat", random.randrange(1, 40), random)
    at = random.randrange(len(rows))
    messages = rows[at]["messages"]
    if random.random() < 0.5:
        messages[-1:-1] = [{"role": "assistant", "content": random.choice(["", " ", "\u200b"])},
                           {"role": "user", "content": "go on"}]
    else:
        for message in messages:
            if message["role"] == "assistant":
                message["weight"] = 0
    return _packed(random, as_lines(rows), f":{at + 1}:", None)


def trained_and_held_out(random: Random) -> Case:
    """The held-out file is among those that are trained on."""
    files = {"d/a.jsonl": GOOD_ROWS, "d/b.jsonl": as_lines(good("prompt_completion", 3, random))}
    named = random.choice(["d", "d/*.jsonl", "d/a.jsonl", "[d/b.jsonl, ./d/../d/a.jsonl]"])
    return with_rows(files, "d/a.jsonl", named, "--set", "data.eval=d/a.jsonl")


def needs_a_tokenizer(random: Random) -> Case:
    """Rows that are well formed: too long for the recipe, with a special token of the base in their
    text, or with turns that the base's template refuses."""
    special = {"prompt": "a", "completion": "<|end|> b"}
    tool = {"messages": [{"role": "user", "content": "a"},
                         {"role": "developer", "content": "b"},
                         {"role": "assistant", "content": "c"}]}
    long = {"prompt": text(random), "completion": text(random) * 2000}
    bad = random.choice([special, tool, long])
    case = with_rows({ROWS: as_lines([bad])}, ROWS, ROWS)
    return Case(case.files, case.place, needs_model=True)


def _with_fault(random: Random) -> tuple[list[dict[str, Any]], str, int]:
    """Good rows with a bad one among them, not the first; their format; the bad one's index."""
    fault, forms = random.choice(list(FAULTS.values()))
    form = random.choice(forms)
    rows = good(form, random.randrange(2, 60), random)
    at = random.randrange(1, len(rows))
    fault(rows[at], form, random)
    return rows, form, at


def _packed(random: Random, lines: bytes, place: str, form: str | None) -> Case:
    """JSON lines, plain or compressed, read alone, by a pattern or in a directory."""
    end, pack = random.choice([("", bytes), (".gz", gzip.compress), (".xz", lzma.compress),
                               (".zst", _zstd)])
    name = f"d/rows.jsonl{end}"
    named = random.choice([name, "d", "d/*", f"[{name}]", f"{{path: d/rows.jsonl{end}}}"])
    setting = () if form is None else ("--set", f"data.format={form}")
    return with_rows({name: pack(lines)}, f"{name}{place}", named, *setting)


def _file_of(random: Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    """Flat rows in any kind of file."""
    end = random.choice(["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
    if end in ("parquet", "arrow"):
        return f"rows.{end}", _table(rows, end)
    if end in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter="," if end == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        return f"rows.{end}", out.getvalue().encode()
    return f"rows.{end}", as_lines(rows) if end == "jsonl" else json.dumps(rows).encode()


def _table(rows: list[dict[str, Any]], end: str) -> bytes:
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({"text": pyarrow.array(
        [], pyarrow.string())})
    out = io.BytesIO()
    if end == "parquet":
        parquet.write_table(table, out)
    else:
        with ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def _zstd(raw: bytes) -> bytes:
    import pyarrow

    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(raw)
    return bytes(out.getvalue())


KINDS: tuple[Kind, ...] = (
    one_bad_row, one_bad_row_in_json, all_rows_bad, late_bad_row, bad_held_out_row, one_bad_source,
    broken_line, wrong_bytes, other_encoding, nothing_in_it, unknown_columns, ragged_rows,
    wrong_header, cut_archive, damaged_archive, wrong_ending, no_list, no_file, wrong_mapping,
    wrong_table, endless_line, nothing_to_learn, trained_and_held_out, needs_a_tokenizer,
)
