"""The commands as a user runs them, against a server in a thread."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import msgspec
import pytest
import typer
from fake_completions_server import FakeServer, serving
from typer.testing import CliRunner

from penstock.workload.commands import parse_objective, replay_command, report_command
from penstock.workload.demo import bursty_demo_trace
from penstock.workload.readers import open_trace
from penstock.workload.records import ReplayError, read_run
from penstock.workload.trace_commands import trace_app

app = typer.Typer()
app.command("replay")(replay_command)
app.command("report")(report_command)
app.add_typer(trace_app, name="trace")
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02d}.5000000,{100 + second},{second + 1}\n" for second in range(40)
)


def penstock(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a well-behaved server that runs until the test is over."""
    started: asyncio.Queue[str] = asyncio.Queue()
    ready, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        async with serving(FakeServer()) as url:
            started.put_nowait(url)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait()
    yield started.get_nowait()
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


@pytest.fixture
def azure(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return path


def test_a_replay_is_shown_written_and_compared(tmp_path, server, azure):
    files = []
    for label in ("one", "two"):
        files.append(tmp_path / f"{label}.json")
        ran = penstock(
            "replay", "--trace", azure, "--url", server, "--policy-label", label, "--out", files[-1], "--limit", 9,
            "--speed", 1000, "--objective", "ttft=9", "--no-progress",
        )  # fmt: skip
        assert ran.exit_code == 0, ran.output
        assert "9 requests" in ran.output
        assert "attainment, share of all requests" in ran.output
    assert [record.output_tokens for record in read_run(files[0]).records] == list(range(1, 10))
    assert penstock("report", *files, "--html", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "http://" not in page.replace("http://www.w3.org", "").replace(server, "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")  # nothing is loaded from elsewhere

    shown = penstock("report", *files)
    assert shown.exit_code == 0, shown.output
    assert "compared request by request" in shown.output

    figures = msgspec.json.decode(penstock("report", *files, "--json", "--objective", "ttft=9").output)
    assert figures["labels"] == ["one", "two"]
    assert figures["summaries"][0]["attainment_frac"] == 1.0
    assert len(figures["windows"][1]) == 20
    assert len(figures["comparisons"][0]["differences"]) == 12


def test_the_bar_of_a_running_replay_does_not_get_into_its_result(server, azure, tmp_path):
    out = tmp_path / "r.json"
    ran = penstock("replay", "-t", azure, "-u", server, "-o", out, "--speed", 1000)
    assert ran.exit_code == 0, ran.output
    assert len(read_run(out).records) == 40


def test_traffic_can_be_made_for_a_replay(server, tmp_path):
    out = tmp_path / "r.json"
    ran = penstock(
        "replay", "-t", "bursts", "-u", server, "-o", out, "--rate-per-s", 1000, "--duration-s", 0.05, "--scale", 0.01,
        "--seed", 7,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    run = read_run(out)
    assert 10 < len(run.records) < 150
    assert max(record.input_tokens for record in run.records) < 100
    assert (run.header.trace, run.header.trace_seed) == ("bursts", 7)


def test_many_clients_are_a_short_table_and_a_run_without_limits_says_so(server, tmp_path):
    trace = tmp_path / "t.jsonl"
    rows = [f'{{"arrival_s":0,"input_tokens":3,"output_tokens":2,"client":"c{place:03d}"}}' for place in range(50)]
    trace.write_text("\n".join(['{"penstock_trace":1,"name":"t"}', *rows]))
    ran = penstock("replay", "-t", trace, "-u", server, "--no-progress")
    assert ran.exit_code == 0, ran.output
    assert ran.output.count("│ c0") == 20
    assert "the 20 of 50 clients whose limits are kept least" in ran.output
    assert "no request has limits" in ran.output


def test_an_interrupted_replay_reports_and_writes_what_there_is(tmp_path):
    """Ctrl-C as a real signal, sent to the client's process by the server that it asks."""
    out, child = tmp_path / "r.json", []

    def interrupt(number: int, body: dict) -> str:
        if number == 5:
            child[0].send_signal(signal.SIGINT)
        return "ok"

    async def main() -> tuple[int, str]:
        async with serving(FakeServer(behaviour=interrupt)) as url:
            command = (
                "replay", "-t", "steady", "--rate-per-s", "20", "--scale", "0.01", "-u", url, "-o", str(out),
            )  # fmt: skip
            asked = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "penstock.cli", *command,
                stdout=subprocess.PIPE,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's `&` ignores it
            )  # fmt: skip
            child.append(asked)
            shown, _ = await asyncio.wait_for(asked.communicate(), timeout=100)
            assert asked.returncode is not None
            return asked.returncode, shown.decode()

    code, shown = asyncio.run(main())
    assert code == 0
    assert "! interrupted: the figures are of what had ended" in shown
    run = read_run(out)
    assert not run.header.is_whole
    assert len(run.records) > 10_000  # every request of the trace has its record, sent or not
    assert 1 <= sum(record.is_ok for record in run.records) < 100


def test_a_replay_without_a_server_is_one_line_and_status_2(azure):
    ran = penstock("replay", "--trace", azure, "--url", "http://127.0.0.1:9")
    assert ran.exit_code == 2
    assert "error: no server answers at http://127.0.0.1:9 (Connection refused)" in ran.stderr
    assert ran.stdout.strip() == ""
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "--trace", "none.csv"),
        ("replay", "--url", "nonsense"),
        ("replay", "--trace", "demo", "--rate-per-s", "2"),
        ("replay", "--trace", "bursts", "--scale", "0"),
        ("replay", "--objective", "ttft:1"),
        ("replay", "--objective", "ttft=-1"),
        ("replay", "--out", "no/such/folder/r.json"),
        ("replay", "--html", "."),
        ("trace", "fit", "steady", "--out", "no/such/folder/f.json"),
        ("trace", "show", "steady", "--html", "no/such/folder/t.html"),
        ("report", "none.json"),
        ("trace", "show", "none.csv"),
        ("trace", "generate", "--out", "t.jsonl", "--rate-per-s", "0"),
        ("trace", "generate", "--out", "t.jsonl", "--parameters", "none.json"),
        ("trace", "generate", "--out", "no/such/folder/t.jsonl"),
        ("trace", "show", "demo", "--format", "sharegpt"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = penstock(*arguments)
    assert ran.exit_code == 2
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1


def test_traces_are_generated_shown_fitted_and_generated_again(tmp_path):
    first, fitted, second = tmp_path / "a.jsonl", tmp_path / "fit.json", tmp_path / "b.jsonl"
    assert penstock("trace", "generate", "--out", first, "--kind", "ragged", "--rate-per-s", 2).exit_code == 0
    shown = penstock("trace", "show", first)
    assert "mean rate" in shown.output
    found = penstock("trace", "fit", first, "--out", fitted)
    assert "KS distance, gaps to Poisson" in found.output
    made = penstock("trace", "generate", "--out", second, "--parameters", fitted, "--seed", 5)
    assert made.exit_code == 0, made.output
    assert open_trace(second).header.name == "like ragged"


@pytest.mark.parametrize("keep", ["requests", "seconds"])
def test_a_fit_can_be_generated_at_another_rate_and_length(tmp_path, keep):
    first, fitted, second = tmp_path / "a.jsonl", tmp_path / "fit.json", tmp_path / "b.jsonl"
    assert penstock("trace", "generate", "--out", first, "--rate-per-s", 5, "--duration-s", 400).exit_code == 0
    assert penstock("trace", "fit", first, "--out", fitted).exit_code == 0
    made = penstock(
        "trace", "generate", "--out", second, "--parameters", fitted, "--rate-per-s", 20, "--duration-s", 100,
        "--scale", 0.1, "--max-output-tokens", 9, "--block-tokens", 16, "--objective", "ttft=1", "--bursts-keep", keep,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    trace = open_trace(second)
    rows = list(trace)
    assert len(rows) == pytest.approx(2000, rel=0.2)
    assert max(row.output_tokens for row in rows) == 9
    assert all(len(row.block_hashes) == -(-row.input_tokens // 16) for row in rows)
    assert {row.objective.ttft_s for row in rows} == {1.0}
    dwell_s = msgspec.json.decode(fitted.read_bytes())["services"][0]["regimes"][0]["mean_dwell_s"]
    made_s = trace.header.parameters["services"][0]["regimes"][0]["mean_dwell_s"]
    factor = {"requests": 4, "seconds": 1}[keep]
    assert made_s * factor == pytest.approx(dwell_s, rel=0.1)


def test_convert_changes_what_it_is_told(tmp_path, azure):
    out = tmp_path / "t.jsonl"
    ran = penstock(
        "trace", "convert", azure, "--out", out, "--start-s", 10, "--stop-s", 20, "--tiles", 2, "--rate-factor", 2,
        "--limit", 15, "--max-input-tokens", 112, "--max-output-tokens", 13, "--objective", "ttft=1,tpot=0.1",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    rows = list(open_trace(out))
    assert [request.arrival_s for request in rows] == [place / 2 for place in range(15)]
    assert max(request.input_tokens for request in rows) == 112
    assert max(request.output_tokens for request in rows) == 13
    assert {request.objective.tpot_s for request in rows} == {0.1}


def test_several_traces_are_mixed_by_time_and_filtered(tmp_path, azure):
    made, out = tmp_path / "made.jsonl", tmp_path / "t.jsonl"
    assert penstock("trace", "generate", "--out", made, "--kind", "steady", "--duration-s", 40).exit_code == 0
    ran = penstock("trace", "convert", azure, made, "--out", out, "--keep", "input_tokens<=130", "--keep", "client!=x")
    assert ran.exit_code == 0, ran.output
    rows = list(open_trace(out))
    assert {row.client for row in rows} >= {"azure"}
    assert {row.category for row in rows} == {"", "conversation"}
    assert max(row.input_tokens for row in rows) <= 130
    assert open_trace(out).header.steps[-1] == "keep client!=x"


def test_a_trace_can_be_converted_onto_itself_and_one_that_fails_leaves_the_old_file(tmp_path, azure):
    out = tmp_path / "t.jsonl"
    assert penstock("trace", "convert", azure, "--out", out).exit_code == 0
    assert penstock("trace", "convert", out, "--out", out, "--limit", 7).exit_code == 0
    assert len(list(open_trace(out))) == 7
    ran = penstock("trace", "convert", out, "--out", out, "--keep", "client=nobody")
    assert ran.exit_code == 2
    assert "no request is left" in ran.stderr
    assert len(list(open_trace(out))) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["azure.csv", "t.jsonl"]


def test_show_and_generate_write_a_page_with_plots(tmp_path, azure):
    shown, made = tmp_path / "shown.html", tmp_path / "made.html"
    assert penstock("trace", "show", azure, "--html", shown).exit_code == 0
    ran = penstock("trace", "generate", "--out", tmp_path / "t.jsonl", "--kind", "ragged", "--html", made)
    assert ran.exit_code == 0, ran.output
    for page, name in ((shown, "azure"), (made, "ragged")):
        text = page.read_text()
        assert f"<h1>{name}</h1>" in text
        assert text.count("<svg") == 2
        assert "mean rate" in text


def test_several_traces_are_shown_in_one_page(tmp_path, azure):
    page = tmp_path / "t.html"
    shown = penstock("trace", "show", azure, "bursts", "--html", page)
    assert shown.exit_code == 0, shown.output
    assert "<h1>azure and bursts</h1>" in page.read_text()
    assert shown.output.count("mean rate") == 2


def test_the_same_run_makes_the_same_page(tmp_path, azure):
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        assert penstock("trace", "show", azure, "--html", page).exit_code == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_the_objective_option_reads_any_of_the_limits():
    limits = parse_objective("ttft=1, deadline=20")
    assert (limits.ttft_s, limits.tpot_s, limits.deadline_s) == (1.0, None, 20.0)
    with pytest.raises(ReplayError, match="'itl=1' is not a limit"):
        parse_objective("itl=1")


def test_the_demo_trace_fits_a_tiny_model_and_lasts_about_twelve_seconds():
    for seed in range(5):
        rows = list(bursty_demo_trace(200, seed))
        assert len(rows) == 200
        assert 8 < rows[-1].arrival_s < 18
        assert all(16 <= request.input_tokens <= 200 and 8 <= request.output_tokens <= 48 for request in rows)
        assert {(request.objective.ttft_s, request.objective.tpot_s) for request in rows} == {(1.0, 0.1)}
    assert list(bursty_demo_trace(50, 1)) == list(bursty_demo_trace(50, 1))
    assert list(bursty_demo_trace(0)) == []


def test_naming_the_commands_imports_none_of_what_they_need():
    code = (
        "import sys, penstock.workload.trace_commands; "
        "print([name for name in ('numpy', 'aiohttp', 'matplotlib', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
