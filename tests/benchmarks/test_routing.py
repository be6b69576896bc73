"""`benchmarks.routing`: ours answers sooner than round robin and least load; odd traces are named."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.llm_trace import LlmRequest, LlmTraceError, read_llm_trace
from benchmarks.routing import first_tokens, main, ours, round_robin

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_ours_is_sooner_at_the_median_and_in_the_tail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    for name in ("ttft_p50_ms", "ttft_p99_ms"):
        assert set(figures[name]) == {"round_robin", "least_load", "fabric"}
        assert figures[name]["fabric"] < min(figures[name]["round_robin"], figures[name]["least_load"])


def test_a_lonely_request_takes_the_round_trip_and_its_prompt() -> None:
    assert first_tokens([LlmRequest(0.0, 800, 10)], ours(), 1.0, 1) == [4.0 + 100.0]


def test_prompts_queue_behind_each_other() -> None:
    together = [LlmRequest(0.0, 8_000, 1)] * 9
    assert max(first_tokens(together, round_robin(), 1.0, 1)) >= 2000


def test_traces_are_read_in_order_of_time_and_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(f"{HEAD}2023-11-16 18:15:51.5,7,8\n2023-11-16 18:15:50.0000000,5,6\n".encode()))
    assert read_llm_trace(path) == [LlmRequest(0.0, 5, 6), LlmRequest(1500.0, 7, 8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n", "no column 'GeneratedTokens'"),
        (HEAD, "no rows"),
        (HEAD + "noon,1,2\n", "row 2, column 'TIMESTAMP'"),
        (HEAD + "2023-11-16 18:15:50,1,2\n2023-11-16 18:15:51,-1,2\n", "row 3, column 'ContextTokens'"),
        (HEAD + "2023-11-16 18:15:50,1\n", "row 2, column 'GeneratedTokens'"),
    ],
)
def test_an_odd_trace_is_named_by_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(LlmTraceError, match=message):
        read_llm_trace(path)


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["--speedup", "0"])
