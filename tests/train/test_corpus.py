import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.train.corpus import Document, collect, fingerprint, is_held_out, split

paths = st.lists(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.py", fullmatch=True), unique=True, max_size=60)


@given(paths=paths)
def test_every_file_falls_on_exactly_one_side_whatever_its_neighbours_are(paths):
    documents = [Document(path, "pass\n") for path in paths]
    train, held_out = split(documents)
    assert sorted([*train, *held_out], key=lambda d: d.path) == sorted(documents, key=lambda d: d.path)
    assert all(not is_held_out(document.path) for document in train)
    assert all(is_held_out(document.path) for document in held_out)


def test_the_split_is_the_one_that_the_shipped_weights_were_trained_on():
    assert is_held_out("socket.py")
    assert is_held_out("statistics.py")
    assert not is_held_out("textwrap.py")
    assert not is_held_out("bisect.py")


def test_about_two_files_in_a_hundred_are_held_out():
    share = sum(is_held_out(f"folder/file_{i}.py") for i in range(5000)) / 5000
    assert 0.015 < share < 0.025


def test_collecting_skips_what_is_no_python_and_the_tables(tmp_path):
    (tmp_path / "encodings").mkdir()
    for name, content in {
        "good.py": b"x = 1\r\n",
        "old.py": b"print 'two'\n",
        "latin.py": b"name = '\xe9'\n",
        "empty.py": b"\n",
        "encodings/cp437.py": b"table = 1\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert collect(tmp_path) == [Document("good.py", "x = 1\n")]


def test_collecting_from_a_folder_without_python_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="--stdlib"):
        collect(tmp_path)


def test_the_fingerprint_sees_a_changed_text_and_a_changed_path():
    a, b, c = Document("a.py", "x\n"), Document("a.py", "y\n"), Document("b.py", "x\n")
    assert len({fingerprint([a]), fingerprint([b]), fingerprint([c])}) == 3
