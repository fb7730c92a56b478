"""Conversations to learn from: about the standard library, about the lessons, and small talk.

The answers about the library are the first paragraphs of its own docstrings, found in the syntax tree.
"""

import ast
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from penstock.train.corpus import Document, parse
from penstock.train.talk import SYSTEM_PROMPTS, draw_talk
from penstock.train.variants import Lesson, Variant, vary

Messages = list[dict[str, str]]
UNASKED_FOLDERS = frozenset({"lib2to3", "idlelib", "distutils", "turtledemo", "ensurepip", "test", "tests"})
LONGEST_ANSWER_CHARS = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """Something of the library that has a docstring."""

    name: str  # textwrap.dedent
    signature: str | None  # textwrap.dedent(text); None for a module
    is_class: bool
    answer: str  # the first paragraph of the docstring


def list_entries(documents: Iterable[Document]) -> list[Entry]:
    """Everything public that the given files define and document."""
    entries = []
    for document in documents:
        path = PurePosixPath(document.path)
        module = ".".join((*path.parts[:-1], path.stem)).removesuffix(".__init__")
        parts = module.split(".")
        if UNASKED_FOLDERS.isdisjoint(parts) and not any(part.startswith("_") for part in parts):
            entries.extend(entries_of(module, parse(document.text)))
    return entries


def entries_of(module: str, tree: ast.Module) -> list[Entry]:
    found = [Entry(module, None, False, first_paragraph(tree))]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(function_entry(f"{module}.{node.name}", node))
        elif isinstance(node, ast.ClassDef):
            name = f"{module}.{node.name}"
            found.append(Entry(name, name, True, first_paragraph(node)))
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            found.extend(function_entry(f"{name}.{method.name}", method) for method in methods)
    return [entry for entry in found if entry.answer and "._" not in entry.name]


def function_entry(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Entry:
    names = [arg for arg in ast.unparse(node.args).split(", ") if arg not in ("self", "cls")]
    return Entry(name, f"{name}({', '.join(names)})", False, first_paragraph(node))


def first_paragraph(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The docstring's first paragraph on one line, or "" where there is none that would do as an answer."""
    text = (ast.get_docstring(node) or "").strip().split("\n\n")[0]
    line = re.sub(r"\s+", " ", text)
    if not 15 <= len(line) <= LONGEST_ANSWER_CHARS or not line.isascii() or not line[0].isalpha():
        return ""
    return line if line.endswith((".", ":", "!")) else line + "."


MODULE_ASKS = (
    "What is the {} module?",
    "What is {} for?",
    "Tell me about the {} module.",
    "What does the {} module do?",
)
CLASS_ASKS = ("What is {}?", "What is {} for?", "Explain {}.", "What does the class {} do?", "Tell me about {}.")
CALL_ASKS = ("What is the signature of {}?", "How do I call {}?", "How do I use {}?", "Which arguments does {} take?")
DOES_ASKS = ("What does {} do?", "What does {} do?", "what does {} do", "Explain {}.", "What is {}?", "What is {} for?")


def ask_library(entry: Entry, rng: random.Random) -> tuple[str, str]:
    """A question about an entry, and its answer."""
    name, answer = entry.name, entry.answer
    if entry.signature is None:
        asked = f"`{name}`" if rng.random() < 0.3 else name
        return rng.choice(MODULE_ASKS).format(asked), f"The `{name}` module: {answer}"
    short = name if rng.random() < 0.8 or name.count(".") < 2 else name.split(".", 1)[1]
    quoted = f"`{short}`" if rng.random() < 0.3 else short
    if entry.is_class:
        return rng.choice(CLASS_ASKS).format(quoted), f"`{name}` is a class. {answer}"
    if rng.random() < 0.25:
        return rng.choice(CALL_ASKS).format(quoted), f"```python\n{entry.signature}\n```\n\n{answer}"
    return rng.choice(DOES_ASKS).format(quoted), f"`{entry.signature}`: {answer}"


def imperative(lesson: Lesson) -> str:
    """The description as it follows "to": "sort a list with quicksort"."""
    return (lesson.description[0].lower() + lesson.description[1:]).rstrip(".")


def third_person(lesson: Lesson) -> str:
    """The description as it follows "it": "sorts a list with quicksort"."""
    verb, _, rest = imperative(lesson).partition(" ")
    ending = "es" if verb.endswith(("s", "sh", "ch", "x")) else "s"
    verb = verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeou" else verb + ending
    return re.sub(r"\b(and|or) (return|keep) ", r"\1 \2s ", f"{verb} {rest}")


def fence(variant: Variant) -> str:
    imports = "".join(f"{line}\n" for line in variant.lesson.imports)
    gap = "\n\n" if imports else ""
    code = "\n\n\n".join((*variant.lesson.helpers, variant.code))
    return f"```python\n{imports}{gap}{code}\n```"


def ask_for_code(lesson: Lesson, rng: random.Random) -> Messages:
    """A request for a lesson's code, at times with a second one for the same with type hints."""
    variant = vary(lesson, rng, has_hints=False if rng.random() < 0.7 else None)
    plain_name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", variant.name).replace("_", " ").lower()
    if lesson.is_class:
        asks = ["Write a class {name}.", "Write a Python class for a {plain}.", "Implement a {plain} in Python.",
                "Implement a {plain}.", "Write a {plain} class."]  # fmt: skip
        leads = ["Here is a class `{name}`:", "Sure, here is a {plain}:", "Here you go:"]
    else:
        asks = ["Write a function to {to}.", "Write a Python function to {to}.", "Write a function that {third}.",
                "Write a Python function that {third}.", "How do I {to} in Python?", "Write {name} in Python.",
                "Implement {plain} in Python.", "Implement {plain}.", "Write a function called {name}.", "{plain}",
                "Show me how to {to}.", "Write code to {to}.", "Can you write a function that {third}?",
                "write a {plain} function", "Give me a {plain} function in Python."]  # fmt: skip
        leads = ["Here is a function that {third}:", "This function {third}:", "Sure, here is `{name}`:",
                 "Here you go:", "You can use this function:"]  # fmt: skip
    words = {"name": variant.name, "plain": plain_name, "to": imperative(lesson), "third": third_person(lesson)}
    answer = f"{rng.choice(leads).format(**words)}\n\n{fence(variant)}"
    if variant.examples and rng.random() < 0.5:
        call, value = rng.choice(variant.examples)
        answer += f"\n\nFor example, `{call}` returns `{value}`."
    messages = turn(rng.choice(asks).format(**words), answer)
    if not lesson.is_class and rng.random() < 0.12:
        hinted = vary(lesson, rng, name=variant.name, has_hints=True)
        messages += turn(
            rng.choice(("Can you add type hints?", "Add type hints.", "With type hints, please.")),
            f"Here it is with type hints:\n\n{fence(hinted)}",
        )
    return messages


def ask_to_explain(lesson: Lesson, rng: random.Random) -> Messages:
    """A question about code that the user shows."""
    variant = vary(lesson, rng)
    ask = rng.choice(("What does this code do?", "Explain this code.", "What does this do?", "Explain this function."))
    subject = "class" if lesson.is_class else "function"
    if lesson.is_class:
        answer = f"This is a class. {lesson.description}"
    else:
        answer = f"The {subject} `{variant.name}` {third_person(lesson)}."
        if variant.examples:
            call, value = rng.choice(variant.examples)
            answer += f" For example, `{call}` returns `{value}`."
    return turn(f"{ask}\n\n{fence(variant)}", answer)


def turn(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_chat(entries: Sequence[Entry], lessons: Sequence[Lesson], rng: random.Random) -> Messages:
    """One conversation of one to three exchanges, one in four of them under a system prompt."""
    messages: Messages = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.38:
            messages += turn(*ask_library(rng.choice(entries), rng))
        elif kind < 0.72:
            messages += ask_for_code(rng.choice(lessons), rng)
        elif kind < 0.78:
            messages += ask_to_explain(rng.choice(lessons), rng)
        else:
            messages += turn(*draw_talk(rng))
    return messages
