"""Many spellings of one lesson: other names, with and without type hints, four kinds of docstring.

A model of seven million parameters that sees a function once in one form learns that form by heart. Seen in hundreds of
forms it learns what stays the same.
"""

import ast
import io
import keyword
import random
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LESSONS = Path(__file__).parent / "lessons"

# What a name may be called instead. Names that belong together change together, by their place in the row.
SYNONYMS: Mapping[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("arr",): (("items",), ("values",), ("nums",), ("lst",), ("data",), ("seq",), ("numbers",), ("array",), ("a",)),
    ("items",): (("lst",), ("values",), ("seq",), ("data",), ("xs",), ("elements",)),
    ("nums",): (("numbers",), ("arr",), ("values",), ("lst",)),
    ("numbers",): (("nums",), ("values",), ("lst",), ("arr",)),
    ("values",): (("numbers",), ("data",), ("xs",)),
    ("text",): (("s",), ("string",), ("word",), ("sentence",)),
    ("char",): (("c",), ("ch",), ("letter",)),
    ("result",): (("out",), ("res",), ("output",), ("answer",)),
    ("total",): (("result",), ("acc",), ("total_sum",)),
    ("low", "high"): (("lo", "hi"), ("left", "right"), ("start", "end"), ("first", "last")),
    ("left", "right"): (("lower", "upper"), ("first", "second"), ("a", "b")),
    ("smaller", "larger"): (("left", "right"), ("less", "greater"), ("lower", "higher")),
    ("mid",): (("middle",), ("m",), ("center",)),
    ("target",): (("x",), ("key",), ("value",), ("item",), ("needle",)),
    ("a", "b"): (("x", "y"), ("first", "second"), ("m", "n")),
    ("n",): (("num",), ("number",), ("x",)),
    ("node", "neighbor"): (("vertex", "other"), ("current", "neighbour"), ("u", "v")),
    ("word",): (("w",), ("token",)),
    ("words",): (("strings",), ("tokens",)),
    ("counts",): (("freq",), ("counter",), ("frequencies",)),
    ("matrix",): (("grid",), ("m",)),
    ("path",): (("filename",), ("file_name",), ("file_path",)),
    ("func",): (("fn",), ("function",), ("f",)),
    ("previous", "current"): (("prev", "curr"), ("prev", "cur")),
    ("seen",): (("visited",), ("found",)),
    ("size",): (("n",), ("length",), ("chunk_size",)),
    ("pivot",): (("p",),),
    ("limit",): (("n",), ("maximum",)),
    ("base", "exponent"): (("x", "n"), ("base", "exp")),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One function or class to learn."""

    name: str
    source: str
    description: str  # the docstring's first line
    examples: tuple[tuple[str, str], ...]  # (expression, printed value)
    aliases: tuple[str, ...]
    imports: tuple[str, ...]
    helpers: tuple[str, ...]  # the source of the classes that this one is built from
    is_class: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One spelling of a lesson."""

    lesson: Lesson
    name: str
    code: str
    examples: tuple[tuple[str, str], ...]


def load_lessons() -> list[Lesson]:
    """Read all lessons, in the order of file and line."""
    return [lesson for file in sorted(LESSONS.glob("[!_]*.py")) for lesson in lessons_in(file)]


def lessons_in(file: Path) -> list[Lesson]:
    # the marks of second and third versions go before anything is read, so a recursive call loses its mark too
    source = re.sub(r"\b(\w+?)_v\d\b", r"\1", file.read_text(encoding="utf-8"))
    tree = ast.parse(source)
    aliases: Mapping[str, tuple[str, ...]] = {}
    imports: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in node.names:
                imports[name.name] = ast.unparse(node)
        if isinstance(node, ast.Assign):
            aliases = ast.literal_eval(node.value)
    lines = source.splitlines()
    lessons = []
    classes: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            text = "\n".join(lines[first_line - 1 : node.end_lineno])
            docstring = ast.get_docstring(node) or ""
            used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            helpers = tuple(code for name, code in classes.items() if name in used)
            if isinstance(node, ast.ClassDef):
                classes[node.name] = text
            lessons.append(
                Lesson(
                    name=node.name,
                    source=text,
                    description=docstring.splitlines()[0],
                    examples=tuple(re.findall(r">>> (.+)\n(.+)", docstring)),
                    aliases=aliases.get(node.name, (node.name,)),
                    imports=tuple(sorted({line for name, line in imports.items() if name in used})),
                    helpers=helpers,
                    is_class=isinstance(node, ast.ClassDef),
                )
            )
    return lessons


def vary(lesson: Lesson, rng: random.Random, *, name: str | None = None, has_hints: bool | None = None) -> Variant:
    """Draw one spelling of a lesson. None leaves a feature to chance."""
    name = name or rng.choice(lesson.aliases)
    code = lesson.source
    if not (rng.random() < 0.35 if has_hints is None else has_hints):
        code = without_hints(code)
    code = rename(code, {lesson.name: name})
    if not lesson.is_class and rng.random() < 0.5:
        code = rename(code, draw_names(code, rng))
    style = rng.choices(("examples", "line", "none", "comment"), (35, 35, 22, 8))[0]
    code = with_docstring(code, style)
    examples = tuple((re.sub(rf"\b{lesson.name}\b", name, call), value) for call, value in lesson.examples)
    if style == "examples":
        code = re.sub(rf"(>>> .*)\b{lesson.name}\b", rf"\g<1>{name}", code)
    return Variant(lesson=lesson, name=name, code=code, examples=examples)


def without_hints(code: str) -> str:
    """Take the type hints off every signature."""
    lines = code.split("\n")
    cuts = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.arg) and node.annotation is not None and node.annotation.end_col_offset is not None:
            cuts.append((node.lineno, node.col_offset + len(node.arg), node.annotation.end_col_offset))
        if isinstance(node, ast.FunctionDef) and node.returns is not None and node.returns.end_col_offset is not None:
            line = lines[node.returns.lineno - 1]
            start = line.rindex(" ->", 0, node.returns.col_offset)
            cuts.append((node.returns.lineno, start, node.returns.end_col_offset))
    for line_number, start, end in sorted(cuts, reverse=True):
        line = lines[line_number - 1]
        after = re.sub(r"^ = ", "=", line[end:])
        lines[line_number - 1] = line[:start] + after
    return "\n".join(lines)


def draw_names(code: str, rng: random.Random) -> dict[str, str]:
    """Choose other names for some of the code's variables, such that no two things share one."""
    tree = ast.parse(code)
    taken = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    taken |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    # a name that is also a keyword of some call, or stands inside an f-string, is left alone
    fixed = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    fixed |= set(re.findall(r"\w+", " ".join(re.findall(r'f".*"', code))))
    names: dict[str, str] = {}
    for group, choices in SYNONYMS.items():
        new = rng.choice(choices)
        is_free = taken.isdisjoint(new) or set(new) == set(group)
        if set(group) <= taken and fixed.isdisjoint(group) and is_free and rng.random() < 0.6:
            names.update(zip(group, new, strict=True))
            taken |= set(new)
    return names


def rename(code: str, names: Mapping[str, str]) -> str:
    """Rename identifiers, but no attributes and nothing inside a string."""
    if all(old == new for old, new in names.items()):
        return code
    lines = code.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    for before, token in reversed(list(zip([tokens[0], *tokens], tokens, strict=False))):
        if token.type == tokenize.NAME and token.string in names and before.string != ".":
            assert not keyword.iskeyword(token.string)
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + names[token.string] + line[column + len(token.string) :]
    return "\n".join(lines)


def with_docstring(code: str, style: str) -> str:
    """Bring the outer docstring into a style: "examples" (as it is), "line", "comment" (above the code) or "none"."""
    if style == "examples":
        return code
    tree = ast.parse(code)
    outer = tree.body[0]
    assert isinstance(outer, ast.FunctionDef | ast.ClassDef)
    docstring = outer.body[0]
    first_line = (ast.get_docstring(outer) or "").splitlines()[0]
    lines = code.split("\n")
    assert docstring.end_lineno is not None
    before, after = lines[: docstring.lineno - 1], lines[docstring.end_lineno :]
    if style == "line":
        return "\n".join([*before, f'    """{first_line}"""', *after])
    if after[0] == "":
        after = after[1:]
    head = [f"# {first_line}"] if style == "comment" else []
    return "\n".join([*head, *before, *after])


def write_module(lessons: list[Lesson], rng: random.Random) -> str:
    """Write one to three lessons as a file: imports, code, sometimes a test or a main block."""
    variants = [vary(lesson, rng) for lesson in rng.sample(lessons, rng.choice((1, 1, 1, 2, 3)))]
    imports = sorted({line for variant in variants for line in variant.lesson.imports})
    parts = []
    if rng.random() < 0.15:
        parts.append(f'"""{variants[0].lesson.description}"""')
    if imports:
        parts.append("\n".join(imports))
    body = "\n\n\n".join(code for variant in variants for code in (*variant.lesson.helpers, variant.code))
    examples = [example for variant in variants for example in variant.examples]
    ending = write_ending(variants, examples, rng) if examples else ""
    return "\n\n".join([*parts, ""]) * bool(parts) + "\n" * bool(parts) + body + ending + "\n"


def write_ending(variants: list[Variant], examples: list[tuple[str, str]], rng: random.Random) -> str:
    """What follows the functions of a file: nothing, asserts, a main block or a test case."""
    style = rng.choices(("none", "asserts", "main", "unittest"), (60, 10, 20, 10))[0]
    if style == "asserts":
        return "\n\n\n" + "\n".join(f"assert {call} == {value}" for call, value in examples)
    if style == "main":
        calls = "\n".join(f"    print({call})" for call, _ in examples)
        return f'\n\n\nif __name__ == "__main__":\n{calls}'
    if style == "unittest":
        title = "".join(part.capitalize() for part in variants[0].name.split("_"))
        tests = "\n".join(f"        self.assertEqual({call}, {value})" for call, value in examples)
        return f"\n\n\nclass Test{title}(unittest.TestCase):\n    def test_{variants[0].name}(self):\n{tests}"
    return ""
