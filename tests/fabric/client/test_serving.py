"""`fabric.serve`, `fabric serve` and `fabric endpoints` against a small real fabric."""

import json
import pickle
from pathlib import Path

import pytest

import fabric
from fabric import cli


class Model:
    model = "toy"

    def chat(self, messages):
        yield {"text": messages}


@pytest.fixture
def toy(small_fabric):
    return fabric.serve(Model(), gpu="H100", replicas=(0, 2))


def test_the_object_travels_and_its_methods_are_told(small_fabric, toy):
    given = small_fabric.endpoints[toy.id]["given"]
    assert (given["name"], given["methods"], given["max_replicas"]) == ("toy", ["chat"], 2)
    assert pickle.loads(small_fabric.blobs[given["code"]])().model == "toy"
    assert [service.id for service in fabric.endpoints()] == [toy.id]


def test_a_folder_may_go_along_and_secrets_may_not_as_the_code_is_kept(small_fabric, tmp_path, monkeypatch):
    (tmp_path / "weights.txt").write_text("w")
    service = fabric.serve(Model(), workdir=str(tmp_path))
    code = small_fabric.blobs[small_fabric.endpoints[service.id]["given"]["code"]]
    monkeypatch.chdir(tmp_path.parent)  # put back at the end
    assert pickle.loads(code)().model == "toy"
    assert Path("weights.txt").read_text() == "w"
    with pytest.raises(fabric.InvalidRequest, match="no keyword 'secrets'"):
        fabric.serve(Model(), secrets={"TOKEN": "s3cret"})


@pytest.mark.parametrize("replicas", [(2, 1), 0, (-1, 2), "2", (0, 300), (True, 2)])
def test_impossible_replicas_are_refused(small_fabric, replicas):
    with pytest.raises(fabric.InvalidRequest, match="least, most"):
        fabric.serve(Model(), replicas=replicas)
    assert not small_fabric.endpoints


def test_what_has_no_method_to_call_is_refused(small_fabric):
    with pytest.raises(fabric.InvalidRequest, match="public methods, such as `chat`"):
        fabric.serve(object())
    assert not small_fabric.endpoints


def test_endpoints_are_listed_and_stopped_from_the_shell(small_fabric, toy, capsys):
    small_fabric.endpoints[toy.id]["report"] = {
        "replicas": [{"state": "ready"}, {"state": "draining"}], "requests": 7, "fault": "no GPU",
    }  # fmt: skip
    assert cli.main(["endpoints"]) == 0
    shown = capsys.readouterr().out
    assert shown == f"{toy.id}  toy  ACTIVE  replicas 1  requests 7  {toy.url}  (no GPU)\n"
    assert cli.main(["endpoints", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["requests"] == 7
    assert cli.main(["endpoints", "stop", toy.id]) == 0
    assert capsys.readouterr().out == f"{toy.id} is stopped\n"
    assert cli.main(["endpoints"]) == 0
    assert "nothing is served" in capsys.readouterr().out
    assert cli.main(["endpoints", "--all"]) == 0
    assert "STOPPED" in capsys.readouterr().out


def test_stopping_what_is_not_there_is_refused(small_fabric, capsys):
    assert cli.main(["endpoints", "stop", "ep_none"]) == 2
    assert "there is no endpoint ep_none" in capsys.readouterr().err


def test_a_model_is_served_from_the_shell(small_fabric, capsys):
    pytest.importorskip("torch")
    words = ["serve", "SmolLM2-135M-Instruct", "--gpu", "24GB..", "--replicas", "0-8", "--budget", "3", "--name", "m"]
    assert cli.main(words) == 0
    (served,) = small_fabric.endpoints.values()
    assert capsys.readouterr().out == f"{served['id']}  m  {served['url']}\n"
    given = served["given"]
    assert (given["min_replicas"], given["max_replicas"]) == (0, 8)
    assert (given["request"]["gpu"], given["request"]["budget_dc"]) == (["24GB.."], 300_000)
    assert {"chat", "complete"} <= set(given["methods"])


@pytest.mark.parametrize("wrong", [["--replicas", "8-"], ["--replicas", "x"], ["--replicas", "5-2"], ["--gpu", "x:y"]])
def test_a_wrong_option_is_one_line_and_exit_code_2(small_fabric, capsys, wrong):
    pytest.importorskip("torch")
    assert cli.main(["serve", "m", *wrong]) == 2
    assert capsys.readouterr().err.startswith("fabric: ")
    assert not small_fabric.endpoints
