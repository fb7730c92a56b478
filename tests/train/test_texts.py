"""The generated texts: lessons, their variants, conversations."""

import ast
import doctest
import importlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.train.chat import ask_library, list_entries, third_person, write_chat
from penstock.train.corpus import Document
from penstock.train.talk import draw_sum
from penstock.train.variants import load_lessons, rename, vary, with_docstring, without_hints, write_module

LESSONS = load_lessons()
DEDENT = Document(
    "textwrap.py",
    'def dedent(text, *, tabs=4):\n    """Remove any common\n    leading whitespace.\n\n    More.\n    """\n\n\n'
    'class Wrapper:\n    """Wraps text to a width."""\n\n    def _hidden(self):\n        """Not to be asked for."""\n',
)


@pytest.mark.parametrize("name", ["classes", "lists", "numbers", "sorting", "text"])
def test_what_the_lessons_promise_in_their_examples_is_true(name):
    result = doctest.testmod(importlib.import_module(f"penstock.train.lessons.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name == "classes"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_variant_still_does_what_its_examples_say(seed):
    rng = random.Random(seed)
    lesson = rng.choice(LESSONS)
    variant = vary(lesson, rng)
    scope: dict = {}
    exec("\n".join([*lesson.imports, *lesson.helpers, variant.code]), scope)
    for call, value in variant.examples:
        assert repr(eval(call, scope)) == value
    assert variant.name in scope


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_written_module_is_python(seed):
    ast.parse(write_module(LESSONS, random.Random(seed)))


def test_variants_of_one_lesson_differ():
    rng = random.Random(0)
    quicksort = next(lesson for lesson in LESSONS if lesson.name == "quicksort")
    assert len({vary(quicksort, rng).code for _ in range(50)}) > 25


def test_hints_are_taken_off_signatures_and_defaults_close_up():
    code = "def f(a: int, b: dict[str, int] | None = None) -> list[int]:\n    return [a]"
    assert without_hints(code) == "def f(a, b=None):\n    return [a]"


def test_renaming_leaves_attributes_and_strings_alone():
    assert rename('x.left = left + "left"', {"left": "lo"}) == 'x.left = lo + "left"'


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("none", "def f():\n    return 1"),
        ("line", 'def f():\n    """Say one."""\n    return 1'),
        ("comment", "# Say one.\ndef f():\n    return 1"),
    ],
)
def test_docstrings_take_the_wanted_form(style, expected):
    assert with_docstring('def f():\n    """Say one.\n\n    >>> f()\n    1\n    """\n    return 1', style) == expected


def test_library_entries_have_signature_and_first_paragraph():
    entries = {entry.name: entry for entry in list_entries([DEDENT])}
    assert entries.keys() == {"textwrap.dedent", "textwrap.Wrapper"}
    assert entries["textwrap.dedent"].signature == "textwrap.dedent(text, *, tabs=4)"
    assert entries["textwrap.dedent"].answer == "Remove any common leading whitespace."


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_an_answer_about_the_library_names_what_was_asked(seed):
    entry = list_entries([DEDENT])[0]
    _, answer = ask_library(entry, random.Random(seed))
    assert "textwrap.dedent" in answer
    assert entry.answer in answer


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_in_a_chat_user_and_assistant_take_turns(seed):
    messages = write_chat(list_entries([DEDENT]), LESSONS, random.Random(seed))
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns == ["user", "assistant"] * (len(turns) // 2)
    assert turns
    assert all(message["content"].strip() for message in messages)


@given(seed=st.integers(0, 2**32))
def test_sums_are_right(seed):
    question, answer = draw_sum(random.Random(seed))
    left, right = answer.split(" = ")
    assert left in question
    assert eval(left) == int(right)


def test_descriptions_turn_into_sentences():
    phrases = {lesson.name: third_person(lesson) for lesson in LESSONS}
    assert phrases["quicksort"].startswith(("sorts", "returns"))
    assert phrases["multiply"] == "multiplies two numbers"
    assert phrases["insert_sorted"] == "inserts a value in a sorted list and keeps it sorted"
