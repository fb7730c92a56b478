"""What reaches the engine of the command line and of the file behind it."""

from __future__ import annotations

import resource

import pytest
from typer.testing import CliRunner

import penstock.serve
from penstock.cli import app
from penstock.core.errors import ConfigError
from penstock.options import EngineOptions


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Run `penstock serve` up to where the engine would start; returns its options."""

    def run(toml: str | bytes, *arguments: str) -> EngineOptions:
        seen: list[EngineOptions] = []
        monkeypatch.setattr(penstock.serve, "serve", lambda options, front, began_s: seen.append(options) or 0)
        file = tmp_path / "c.toml"
        file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        done = CliRunner().invoke(app, ["serve", "--config", str(file), *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return seen[0]

    return run


FILE = 'dtype = "float16"\nmax_running = 8\nprefix_caching = false\nmodel = "other"\n[order]\nname = "priority"\n'


def test_a_flag_wins_over_the_file_also_with_the_value_that_it_has_by_default(serve):
    got = serve(FILE, "penstock-tiny", "--dtype", "auto", "--max-running", "64", "--prefix-caching", "--order", "fcfs")
    assert got == EngineOptions(slots={"order": "fcfs"}, policy_options={"order": {}})


def test_the_file_stands_where_no_flag_is_given(serve):
    got = serve(FILE)
    assert (got.dtype, got.max_running, got.prefix_caching, got.model) == ("float16", 8, False, "other")
    assert got.slots == {"order": "priority"}


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        (b"\xff\xfe", "not valid TOML"),
        ('[slots]\norder = "edf"\n', "slots has no place in the file"),
        ("threads = 0\n", "threads is 0: give 1 or more"),
    ],
)
def test_a_file_that_says_nothing_sensible_is_refused(serve, toml, expected):
    with pytest.raises(ConfigError, match=expected):
        serve(toml)


def test_api_keys_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the API keys in"):
        penstock.serve.read_api_keys(tmp_path / "missing", ())
    (tmp_path / "bad").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        penstock.serve.read_api_keys(tmp_path / "bad", ())


def test_a_server_takes_as_many_open_files_as_it_may(monkeypatch):
    said: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: said.append((what, limits)))
    penstock.serve._raise_open_files()
    assert said == [(resource.RLIMIT_NOFILE, (4096, 4096))]
