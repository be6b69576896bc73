"""Uptime, utilisation, prices and yield over HTTP, with the rows behind them, in every form that is offered."""

import csv
import io
import json
import socket
import sys
import threading

import pytest
import uvicorn
from pyarrow import parquet
from scripted import H100_PRICE, L4_PRICE, PAYOUT, Agent, Fabric, TestClient, bootstrap_file, gpu, nodes
from typer.testing import CliRunner

from api.app import create_app
from api.settings import Settings
from api.tabular import Format, accepted
from fabric.wire import link
from fabric.wire.clock import ManualClock
from fabric.wire.receipts import ReceiptKind
from ledger import published
from ledger.cli import app

CAROLS, OTHERS = "0x" + "Ca" * 20, "0x" + "dd" * 20


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A fabric with short epochs whose op-1 has three GPUs; alice used one of them for 10 s and then it was closed."""
    folder = tmp_path_factory.mktemp("investors")
    bootstrap = bootstrap_file(folder)
    declared = json.loads(bootstrap.read_text())
    declared["operators"][0]["account"] = "bob"
    declared["customers"][2]["wallet"] = CAROLS
    bootstrap.write_text(json.dumps(declared))
    options = {"state_dir": folder, "bootstrap": bootstrap, "allow_simulated": True, "challenges": False}
    clock = ManualClock()
    app = create_app(Settings(**options, finality_s=2, epoch_s=10), clock, tick_s=None)
    with TestClient(app) as client, Fabric(app, client, clock) as fabric:
        use(fabric)
        yield fabric


def use(fabric) -> None:
    agent = Agent(fabric)
    agent.connect()
    for _ in range(3):
        agent.beat(1000)
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    for at in range(1, 11):
        agent.beat(1000)
        agent.receipt(grant, ReceiptKind.TICK if at < 10 else ReceiptKind.CLOSE, at * 1000)
    for _ in range(20):
        agent.beat(1000)


def get(fabric, path: str, **options):
    return fabric.client.get(f"/v1/ledger/{path}", **options)


def used_gpu(fabric) -> str:
    (gpu_id,) = get(fabric, "gpus").json()["gpus"]
    return gpu_id


def every(fabric, path: str, rows: str, limit: int) -> list[dict]:
    """All pages of it."""
    found, cursor = [], None
    while True:
        page = get(fabric, path, params={"limit": limit} | ({} if cursor is None else {"cursor": cursor})).json()
        assert len(page[rows]) <= limit
        found += page[rows]
        cursor = page["next"]
        if cursor is None:
            return found


def test_utilisation_is_what_its_rows_add_up_to(used):
    gpu_id = used_gpu(used)
    whole = get(used, f"gpus/{gpu_id}/utilisation").json()["total"]
    rows = every(used, f"gpus/{gpu_id}/usage", "usage", 3)
    stretches = every(used, f"gpus/{gpu_id}/uptime", "stretches", 1)
    assert whole["gpu_ms"] == sum(row["gpu_ms"] for row in rows) == 10_000
    assert int(whole["dc"]) == sum(int(row["dc"]) for row in rows) == 1_000
    assert whole["receipts"] == len(rows) == len({(row["meter"], row["seq"], row["part"]) for row in rows})
    up = sum(one["until_ms"] - one["from_ms"] for one in stretches)
    assert whole["up_ms"] == up > 10_000
    assert whole["utilisation_bps"] == 10_000 * 10_000 // up
    assert (whole["uptime_bps"], whole["paid_dc_per_gpu_hour"]) == (10_000, str(H100_PRICE))


def test_an_operators_lines_are_its_gpus_and_add_up(used):
    found = get(used, "operators/op-1/utilisation").json()
    lines = every(used, "operators/op-1/utilisation", "lines", 2)
    assert (found["gpus"], len(lines)) == (3, 3)
    for name in ("up_ms", "known_ms", "gpu_ms", "receipts"):
        assert found["total"][name] == sum(line[name] for line in lines)
    assert get(used, "pools/op-1/utilisation").json()["total"] == found["total"]
    holder = used.call("GET", f"/v1/ledger/holders/{PAYOUT.upper().replace('0X', '0x')}/utilisation", who="admin")
    assert holder["total"] == found["total"]
    assert get(used, "operators/nobody/utilisation").json()["gpus"] == 0


def test_a_windows_parts_are_the_whole(used):
    gpu_id, now = used_gpu(used), used.clock.now_ms()
    whole = get(used, f"gpus/{gpu_id}/utilisation").json()["total"]
    middle = now - 26_000
    parts = [get(used, f"gpus/{gpu_id}/utilisation?{window}").json()["total"]
             for window in (f"to_ms={middle}", f"from_ms={middle}")]  # fmt: skip
    assert 0 < parts[0]["gpu_ms"] < 10_000
    for name in ("up_ms", "known_ms", "gpu_ms", "receipts"):
        assert sum(part[name] for part in parts) == whole[name]


def test_prices_are_those_asked(used):
    found = get(used, "operators/op-1/prices").json()
    assert {(p["model"], p["price_dc_per_gpu_hour"], p["gpus"]) for p in found["prices"]} == {
        ("H100", str(H100_PRICE), 2),
        ("L4", str(L4_PRICE), 1),
    }
    assert found["paid_dc_per_gpu_hour"] == str(H100_PRICE)
    assert get(used, "prices").json() == found
    assert [p["model"] for p in get(used, "prices?model=L4").json()["prices"]] == ["L4"]


def test_a_yield_is_the_cash_flow_at_the_epochs_prices(used):
    gpu_id = used_gpu(used)
    found = get(used, f"gpus/{gpu_id}/yield?cost_usd=2.5").json()
    flow = get(used, f"gpus/{gpu_id}").json()["cash_flow"]
    prices = {one["n"]: int(one["price_usd_e18"]) for one in get(used, "epochs").json()["epochs"]}
    assert int(found["wei"]) == sum(int(line["wei"]) for line in flow) > 0
    assert int(found["dc"]) == sum(int(line["dc"]) for line in flow) == 1_000
    value = sum(int(line["wei"]) * prices[line["epoch"]] // 10**31 for line in flow)
    assert int(found["value_dc"]) == value
    assert found["yearly_bps"] == value * 365 * 86_400_000 * 10_000 // (250_000 * found["span_ms"])
    assert every(used, f"gpus/{gpu_id}/yield", "lines", 1) == found["lines"]
    assert get(used, f"gpus/{gpu_id}/yield").json()["yearly_bps"] is None


def test_no_answer_names_a_customer_a_run_or_a_lease(used):
    gpu_id = used_gpu(used)
    run = used.call("GET", "/v1/runs")["runs"][0]["id"]
    entries = used.call("GET", "/v1/ledger/entries?limit=1000")["entries"]
    leases = {one["lease"] for one in entries if one["lease"]}
    for path in (
        f"gpus/{gpu_id}/usage",
        f"gpus/{gpu_id}/uptime",
        f"gpus/{gpu_id}/utilisation",
        f"gpus/{gpu_id}/yield",
        "prices",
    ):
        text = get(used, path).text
        assert not [name for name in ("alice", run, *leases) if name in text]


@pytest.mark.parametrize("view", ["", "/uptime", "/utilisation", "/prices", "/yield"])
def test_a_holders_view_is_for_the_account_that_speaks_for_the_address(used, view):
    path = f"/v1/ledger/holders/{{}}{view}"
    assert used.client.get(path.format(PAYOUT)).status_code == 401
    for who, address in (("alice", PAYOUT), ("alice", CAROLS), ("bob", OTHERS), ("carol", PAYOUT)):
        assert used.call("GET", path.format(address), who=who, expect=403)["type"] == "/problems/permission-denied"
    for who, address in (("bob", PAYOUT), ("carol", CAROLS), ("carol", CAROLS.lower()), ("admin", OTHERS)):
        used.call("GET", path.format(address), who=who)


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("gpus/{}", "cash_flow"),
        ("gpus/{}/usage", "usage"),
        ("gpus/{}/uptime", "stretches"),
        ("gpus/{}/utilisation", "lines"),
        ("gpus/{}/yield", "lines"),
        ("gpus/{}/prices", "prices"),
        ("operators/op-1", "cash_flow"),
        ("epochs", "epochs"),
    ],
)
def test_csv_and_parquet_have_the_rows_of_the_json(used, path, rows):
    path = path.format(used_gpu(used))
    plain = get(used, path).json()[rows]
    assert plain
    text = get(used, path, params={"format": "csv"})
    assert text.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.DictReader(io.StringIO(text.text))) == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in plain
    ]
    table = get(used, path, headers={"Accept": "application/vnd.apache.parquet"})
    assert table.headers["content-type"] == "application/vnd.apache.parquet"
    read = parquet.read_table(io.BytesIO(table.content)).to_pylist()
    assert [{name: str(value) for name, value in row.items()} for row in read] == [
        {name: str(value) for name, value in row.items()} for row in plain
    ]


def test_entries_are_a_table_of_postings(used):
    options = {"headers": {"Authorization": "Bearer key-alice"}}
    entries = get(used, "entries?limit=1000", **options).json()["entries"]
    lines = list(csv.DictReader(io.StringIO(get(used, "entries?limit=1000&format=csv", **options).text)))
    assert len(lines) == sum(len(one["postings"]) or 1 for one in entries)
    assert sum(int(line["amount"]) for line in lines) == 0
    assert {line["customer"] for line in lines} == {"alice"}


def test_the_next_page_of_a_table_is_in_link(used):
    first = get(used, f"gpus/{used_gpu(used)}/usage?format=csv&limit=4")
    following = first.links["next"]["url"]
    second = used.client.get(following)
    numbers = [row["seq"] for answer in (first, second) for row in csv.DictReader(io.StringIO(answer.text))]
    assert numbers == [str(n) for n in range(10, 2, -1)]


def test_a_name_that_a_spreadsheet_would_run_is_text(start):
    fabric = start(finality_s=2, epoch_s=10)
    bad = "=HYPERLINK(1)"
    agent = Agent(fabric, nodes=nodes(gpu(1, bad)), prices={bad: {"on_demand": 5}})
    agent.connect()
    for _ in range(3):
        agent.beat(1000)
    assert get(fabric, "prices").json()["prices"][0]["model"] == bad
    assert f"'{bad}" in get(fabric, "prices?format=csv").text


def test_what_has_not_changed_is_not_sent_again(used):
    gpu_id = used_gpu(used)
    first = get(used, f"gpus/{gpu_id}")
    tag = first.headers["etag"]
    again = get(used, f"gpus/{gpu_id}", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert get(used, f"gpus/{gpu_id}?format=csv", headers={"If-None-Match": tag}).status_code == 200
    assert get(used, f"gpus/{gpu_id}", headers={"If-None-Match": '"other"'}).json() == first.json()
    moving = get(used, "epochs").headers["etag"]
    used.tick(10_000)
    assert get(used, "epochs", headers={"If-None-Match": moving}).status_code == 200
    own = get(used, "entries", headers={"Authorization": "Bearer key-alice"})
    assert own.headers["cache-control"] == "private, no-cache"


def test_forms_and_windows_that_do_not_exist_are_refused(used, monkeypatch):
    gpu_id = used_gpu(used)
    refused = get(used, f"gpus/{gpu_id}/usage", headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["type"]) == (406, "/problems/not-acceptable")
    assert "text/csv" in refused.json()["detail"]
    assert get(used, f"gpus/{gpu_id}/usage?format=xml").status_code == 422
    assert get(used, f"gpus/{gpu_id}/usage?from_ms=5&to_ms=5").status_code == 422
    assert get(used, f"gpus/{gpu_id}/uptime?cursor=nonsense").status_code == 422
    assert get(used, f"gpus/{gpu_id}/yield?cost_usd=0").status_code == 422
    assert get(used, f"gpus/{gpu_id}/yield?cost_usd=NaN").status_code == 422
    for path in ("usage", "uptime", "utilisation", "prices", "yield"):
        assert get(used, f"gpus/0x00/{path}").status_code == 404
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    missing = get(used, f"gpus/{gpu_id}/usage?format=parquet")
    assert missing.status_code == 406
    assert "pip install" in missing.json()["detail"]


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("*/*", Format.JSON),
        ("text/html, */*;q=0.1", Format.JSON),
        ("text/csv;q=0.5, application/json", Format.JSON),
        ("text/csv, application/json;q=0.9", Format.CSV),
        ("application/vnd.apache.parquet", Format.PARQUET),
        ("text/csv;q=0, application/json;q=0.1", Format.JSON),
        ("text/csv;q=x", None),
        ("image/png", None),
    ],
)
def test_the_form_that_is_liked_best_is_taken(header, form):
    assert accepted(header) == form


def test_the_commands_print_all_pages(used, monkeypatch):
    """Over a real socket, a page of three rows at a time."""
    monkeypatch.setattr(published, "PAGE", 3)
    monkeypatch.setenv("FABRIC_API_KEY", "key-bob")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(used.app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"

            def said(*arguments: str) -> str:
                result = CliRunner().invoke(app, [*arguments, "--url", url], catch_exceptions=False)
                assert result.exit_code == 0, result.output
                return result.output

            gpu_id = used_gpu(used)
            rows = list(csv.DictReader(io.StringIO(said("usage", gpu_id, "--csv"))))
            assert rows == list(csv.DictReader(io.StringIO(get(used, f"gpus/{gpu_id}/usage?format=csv").text)))
            assert len(rows) == 11
            assert len(json.loads(said("utilisation", "operator", "op-1", "--json"))["lines"]) == 3
            assert "3 GPUs" in said("uptime", "pool", "op-1")
            assert str(H100_PRICE) in said("prices", "gpu", gpu_id)
            assert "of the cost in a year" in said("yield", "holder", PAYOUT, "--cost-usd", "10")
            assert f"holder {PAYOUT}: 1 GPUs" in said("holder", PAYOUT)
            closed = json.loads(said("epochs", "--json"))["epochs"]
            assert len(closed) == len(every(used, "epochs", "epochs", 1000)) > 3
        finally:
            server.should_exit = True
            thread.join()
