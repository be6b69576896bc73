import copy
from pathlib import Path

import pytest
import yaml

from fabric.operator import init
from fabric.operator.cluster_file import ClusterFileError, parse_cluster, read_cluster_file
from fabric.operator.folder import OperatorFolder
from fabric.operator.launch import agent_config, node_arguments, own_address
from fabric.operator.template import fill_in, template_text

ROOT = Path(__file__).parents[3]
SITE = init.Site(
    url="https://fabric.example",
    cluster="rack-1",
    head="10.0.0.11",
    workers=("10.0.0.12", "10.0.0.13"),
    region="eu-central",
    ssh_user="fabric",
    ssh_key="~/.ssh/fabric",
    prices={"H100": {"on_demand": "2.49", "spot": "0.99"}},
    nodes={"10.0.0.12": {"num_gpus": 4, "labels": {"rack": "b2"}}},
)


@pytest.fixture
def document(tmp_path):
    folder = OperatorFolder(tmp_path / "op")
    folder.lay_out()
    init.write_cluster_file(folder, SITE, "op_1")
    return yaml.safe_load(folder.cluster_file.read_text())


def changed(document, path, value):
    other = copy.deepcopy(document)
    *parents, last = path
    place = other
    for key in parents:
        place = place[key]
    place[last] = value
    return other


def test_the_shipped_template_is_the_one_at_the_top():
    assert template_text() == (ROOT / "cluster.yaml").read_text()


def test_init_fills_in_every_placeholder(document):
    assert "@" not in yaml.safe_dump(document)


def test_the_filled_file_says_what_init_was_told(document):
    cluster = parse_cluster(document)
    assert cluster.addresses == ("10.0.0.11", "10.0.0.12", "10.0.0.13")
    assert cluster.prices == {"H100": {"on_demand": 249_000, "spot": 99_000}}
    assert cluster.settings_of("10.0.0.12").num_gpus == 4
    assert cluster.settings_of("10.0.0.13").num_gpus is None


def test_ray_itself_accepts_the_filled_file(document):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(document))


def test_the_template_itself_is_not_taken_for_a_cluster():
    with pytest.raises(ClusterFileError, match="init"):
        read_cluster_file(ROOT / "cluster.yaml")


def test_a_missing_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(ClusterFileError, match="operator init"):
        read_cluster_file(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("provider", "fabric", "prices"), {"H100": {"on_demand": "0"}}, "at least"),
        (("provider", "fabric", "prices"), {"H100": {"on_demand": "-1"}}, "0 or more"),
        (("provider", "fabric", "prices"), {"H100": {"on_demand": "0.000001"}}, "at least"),
        (("provider", "fabric", "prices"), {"H100": {"weekly": "1"}}, "one of spot"),
        (("provider", "fabric", "prices"), {"H100": {"spot": ["1"]}}, "USD per GPU-hour"),
        (("provider", "fabric", "prices"), {}, "empty"),
        (("provider", "fabric", "isolation"), "docker", "bubblewrap, none"),
        (("provider", "fabric", "allow"), ["office"], "networks"),
        (("provider", "fabric", "nodes"), {"10.9.9.9": {}}, "neither head_ip"),
        (("provider", "fabric", "nodes"), {"10.0.0.12": {"gpus": 1}}, "unknown key gpus"),
        (("provider", "fabric", "nodes"), {"10.0.0.12": {"num_gpus": -1}}, "whole number"),
        (
            ("provider", "fabric", "nodes"),
            {host: {"num_gpus": 0} for host in (SITE.head, *SITE.workers)},
            "one at least must offer a GPU",
        ),
        (("provider", "fabric", "speed"), 1, "unknown key speed"),
        (("provider", "fabric", "networks"), ["everything"], "one of gang, hosts, open"),
        (("provider", "fabric", "private_networks"), ["office"], "networks"),
        (("provider", "fabric", "packages"), {"index": "pypi"}, "such as https"),
        (("provider", "fabric", "packages"), {"find_links": "wheels"}, "absolute path"),
        (("provider", "fabric", "packages"), {"cache": "lots"}, "packages.cache"),
        (("provider", "fabric", "packages"), {"mirror": "x"}, "unknown key mirror"),
        (("provider", "fabric", "gateway"), {"port": 70_000}, "TCP port"),
        (("provider", "worker_ips"), ["10.0.0.11"], "twice"),
        (("provider", "worker_ips"), ["worker-1"], "IP addresses"),
        (("provider", "head_ip"), None, "missing"),
        (("provider", "fabric"), None, "missing"),
        (("auth", "ssh_user"), "", "ssh_user"),
    ],
)
def test_a_wrong_key_is_named_with_what_would_be_right(document, path, value, says):
    with pytest.raises(ClusterFileError, match=says):
        parse_cluster(changed(document, path, value))


def test_each_host_gets_the_arguments_of_its_own_address(document):
    cluster = parse_cluster(document)
    arguments = node_arguments(cluster, "10.0.0.12")
    assert "--node-ip-address=10.0.0.12" in arguments
    assert "--num-gpus=4" in arguments
    assert "--labels=fabric.dev/cluster=rack-1,fabric.dev/region=eu-central,rack=b2" in arguments
    assert not any(argument.startswith("--num-gpus") for argument in node_arguments(cluster, "10.0.0.13"))


def test_a_host_knows_itself_by_its_address_and_a_stranger_is_refused(document):
    cluster = parse_cluster(document)
    assert own_address(cluster, {"127.0.0.1", "10.0.0.13"}) == "10.0.0.13"
    with pytest.raises(ClusterFileError, match="exactly one"):
        own_address(cluster, {"127.0.0.1", "10.0.0.99"})
    with pytest.raises(ClusterFileError, match="exactly one"):
        own_address(cluster, {"10.0.0.11", "10.0.0.12"})


def test_the_agent_is_told_what_the_file_says(document):
    config = agent_config(parse_cluster(document), "/home/fabric/.fabric-operator/agent")
    assert config["url"] == "https://fabric.example"
    assert config["prices"] == {"H100": {"on_demand": 249_000, "spot": 99_000}}
    assert config["ray_address"] == "10.0.0.11:6379"
    assert config["session_key_file"] == "/home/fabric/.fabric-operator/agent/session.key"


def test_a_value_that_yaml_or_a_shell_would_misread_is_refused():
    assert fill_in("a: x@b@y", {"b": "1/2"}) == "a: x1/2y"
    for text in ("a\nb", "$(id)", "a;b", '"'):
        with pytest.raises(ValueError, match="letters"):
            fill_in("a: x@b@y", {"b": text})


def test_a_placeholder_and_a_value_must_meet():
    with pytest.raises(ValueError, match="asks for"):
        fill_in('a: "@b@"', {})
    with pytest.raises(ValueError, match="no place"):
        fill_in("a: 1", {"b": 1})


def test_init_never_overwrites_a_file_that_was_edited(tmp_path):
    folder = OperatorFolder(tmp_path)
    folder.cluster_file.write_text("mine: true\n")
    init.write_cluster_file(folder, SITE, "op_1")
    assert folder.cluster_file.read_text() == "mine: true\n"


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path):
    folder = OperatorFolder(tmp_path / "op")
    folder.lay_out()
    key = folder.session_key()
    token = folder.ray_token_file.read_text()
    folder.lay_out()
    assert folder.session_key() == key
    assert folder.ray_token_file.read_text() == token
    assert {path.stat().st_mode & 0o777 for path in (folder.session_key_file, folder.ray_token_file)} == {0o600}
    assert folder.path.stat().st_mode & 0o777 == 0o700
