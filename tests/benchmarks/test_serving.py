"""`benchmarks.serving`: what its figures are made of, and what it refuses; the servers themselves take minutes."""

import asyncio
import json

import httpx
import pytest

from benchmarks.serving import Answer, Outcome, ask, figures_of, main, merged, ratios_of, same_pct


def test_figures_are_of_all_answers_and_a_lone_token_has_no_further_one() -> None:
    lone = Answer(300, 300, 1, "b")
    many = [Answer(100, 400, 4, "a"), lone, Answer(200, 300, 3, "c"), Answer(200, 600, 3, "d")]
    assert figures_of(Outcome(many, 2.0), "x_") == {
        "x_requests_per_s": 2.0, "x_tokens_per_s": 5.5, "x_ttft_p50_ms": 200, "x_ttft_p99_ms": 300,
        "x_tpot_p50_ms": 100.0, "x_tpot_p99_ms": 200.0,
    }  # fmt: skip
    assert "tpot_p50_ms" not in figures_of(Outcome([Answer(5, 5, 1, "a")], 1.0))


def test_same_answers_are_counted_by_their_text() -> None:
    one = Outcome([Answer(1, 2, 2, "a"), Answer(1, 2, 2, "b")], 1.0)
    assert same_pct(one, Outcome([Answer(9, 9, 2, "a"), Answer(1, 2, 2, "other")], 1.0)) == 50


def test_a_load_that_drifts_over_the_rounds_cancels_in_their_ratio() -> None:
    answers = [Answer(1, 2, 2, "a")] * 4
    ours = [Outcome(answers, seconds) for seconds in (1.0, 4.0, 20.0)]
    theirs = [Outcome(answers, seconds) for seconds in (2.0, 8.0, 20.0)]
    assert ratios_of(ours, theirs, "r") == {"r": 2.0, "r_min": 1.0, "r_max": 2.0}
    assert merged(ours) == Outcome(answers * 3, 25.0)


def asked(*chunks: dict[str, object]) -> Answer:
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    async def once() -> Answer:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
        async with httpx.AsyncClient(transport=transport, base_url="http://x/v1/") as http:
            return await ask(http, "m", 1, 8)

    return asyncio.run(once())


def test_an_answer_is_its_pieces_and_the_count_of_its_usage() -> None:
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("Sa", "lt")]
    answer = asked(*pieces, {"choices": [], "usage": {"completion_tokens": 7}})
    assert (answer.text, answer.tokens) == ("Salt", 7)
    assert 0 < answer.ttft_ms <= answer.last_ms


def test_a_stream_that_ends_in_an_error_or_without_usage_is_no_answer() -> None:
    piece = {"choices": [{"delta": {"content": "Salt"}}]}
    with pytest.raises(RuntimeError, match="replica lost"):
        asked(piece, {"error": {"message": "replica lost"}})
    with pytest.raises(RuntimeError, match="no usage"):
        asked(piece)


def test_refusals_come_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--clients", "0"])
    assert refused.value.code == 2
    assert "a whole number of 1 or more, not '0'" in capsys.readouterr().err
    assert main(["--model", "no-such-model"]) == 2
    assert "no model 'no-such-model'" in capsys.readouterr().err
