"""Words with tags for tagging.py, names in Python code or entities in CoNLL-2003's form, and their F1."""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import random
import re
import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import common

LONGEST = 100  # tokens of a statement; longer ones are tables of data
WIDTH = 80  # of a line of a passage


class Token(NamedTuple):
    """A word or sign, and where it stands."""

    text: str
    word: str  # what the network may see of it
    tag: str  # B- begins an entity, I- is inside of it, O is outside
    row: int
    column: int


def read_sentences(code: Path, conll: Path | None, modules: int) -> list[list[list[Token]]]:
    """The sentences to train with, to validate with and to test with; no module is in two of these parts."""
    if conll:
        source, pieces = f"--conll {conll}", [[sentence] for sentence in read_conll(conll)]
    else:
        files = sorted(code.glob("*.py"))
        files = random.Random(0).sample(files, min(len(files), modules))
        source, pieces = f"--code {code}", [read_module(file) for file in files]
    n = len(pieces) // 5
    parts = [list(itertools.chain(*part)) for part in (pieces[2 * n :], pieces[n : 2 * n], pieces[:n])]
    if not all(parts):
        raise SystemExit(f"{source}: expected 5 {'sentences' if conll else 'modules *.py'} or more")
    return parts


def roles_of(text: str) -> dict[tuple[int, int], str]:
    """What names of a module are, by row and column, as far as its syntax tree says."""
    nodes = list(ast.walk(ast.parse(text)))
    called = {node.func for node in nodes if isinstance(node, ast.Call)}
    roles = {}
    for node in nodes:
        match node:
            case ast.Name(ctx=ast.Load()):
                roles[node.lineno, node.col_offset] = "called" if node in called else "read"
            case ast.Attribute():
                start = node.end_col_offset - len(node.attr.encode())
                roles[node.end_lineno, start] = "method" if node in called else "attribute"
            case ast.arg():
                roles[node.lineno, node.col_offset] = "parameter"
            case ast.keyword():
                roles[node.lineno, node.col_offset] = "argument"
    lines = text.encode().split(b"\n")  # the tree counts bytes, tokens count characters
    return {(row, len(lines[row - 1][:byte].decode())): role for (row, byte), role in roles.items()}


def read_module(path: Path) -> list[list[Token]]:
    """The statements of a module; each of its names is an entity of one token."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        roles, parts = roles_of(text), list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        raise SystemExit(f"--code {path}: expected Python, got {error}") from None
    statements = [[]]
    for part in parts:
        kind, statement = tokenize.tok_name[part.type], statements[-1]
        word, tag = part.string, "O"
        if kind == "NEWLINE":
            statements.append([])
        elif kind == "NAME" and not keyword.iskeyword(word):
            tag = "B-" + roles.get(part.start, "assigned")
            if statement and statement[0].text in ("from", "import"):
                tag = "B-imported"
            elif statement and statement[-1].text in ("def", "class"):
                tag = "B-defined"
        elif kind == "NUMBER" or "STRING" in kind:
            word = kind
        if kind in ("NAME", "OP") or word == kind:
            statement.append(Token(part.string.split("\n")[0], word, tag, *part.start))
    return [statement for statement in statements if 0 < len(statement) <= LONGEST]


def read_conll(path: Path) -> list[list[Token]]:
    """The sentences of a file that has a word a line, its tag last, and an empty line after each sentence."""
    sentences, row, column = [[]], 0, 0
    for number, line in enumerate(common.read_text(path, "--conll").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            sentences.append([])
            continue
        if len(fields) < 2 or not re.fullmatch("O|[BI]-.+", fields[-1]):
            raise SystemExit(f"--conll {path}:{number}: expected a word and O, B-... or I-..., got {line!r}")
        if not sentences[-1] or column > WIDTH:
            row, column = row + 1, 0
        sentences[-1].append(Token(fields[0], fields[0], fields[-1], row, column))
        column += len(fields[0]) + 1
    return [sentence for sentence in sentences if sentence]


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """The entities of a sentence: start, end, kind. An I- of another kind than before begins one too."""
    found, start, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        if tag != f"I-{kind}":
            if kind:
                found.add((start, i, kind))
            start, kind = i, tag[2:]
    return found


def judge(sentences: list[list[Token]], predicted: list[list[str]]) -> dict[str, float]:
    """The accuracy of the tags, the F1 of all entities, and the F1 of each kind of entity."""
    hits, true, found, right = [], Counter(), Counter(), Counter()
    for sentence, guesses in zip(sentences, predicted, strict=True):
        tags = [token.tag for token in sentence]
        hits += [tag == guess for tag, guess in zip(tags, guesses, strict=True)]
        a, b = spans(tags), spans(guesses)
        for counter, entities in (true, a), (found, b), (right, a & b):
            counter.update(kind for *_, kind in entities)
            counter["F1"] += len(entities)
    f1 = {kind: 2 * right[kind] / max(1, n + found[kind]) for kind, n in true.most_common()}
    return {"token accuracy": sum(hits) / len(hits)} | f1
