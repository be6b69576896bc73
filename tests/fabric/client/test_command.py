"""A program instead of a function: its exit code, its folder, its secrets; and what goes along with a function."""

import os
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

import fabric
from fabric import cli
from fabric.client import workdir
from fabric.client.workdir import pack_workdir, unpack_workdir

SECRET = "s3cr3t-value-of-nobody"


def test_a_program_that_ends_well_gives_0_and_its_output_is_the_runs(small_fabric):
    assert fabric.run(command="exit 0") == 0
    assert fabric.run(command=["true"]) == 0


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), (["sh", "-c", "kill -9 $$"], 137)])
def test_another_exit_code_is_a_failed_run_that_has_it(small_fabric, command, code):
    with pytest.raises(fabric.RunFailed, match="the program ended") as caught:
        fabric.run(command=command)
    assert (caught.value.reason, caught.value.exit_code) == ("user_error", code)


def test_only_the_exit_codes_that_retry_names_are_tried_again(small_fabric, tmp_path):
    count = f"echo x >> {tmp_path}/tries; exit $(wc -l < {tmp_path}/tries)"
    with pytest.raises(fabric.RunFailed) as caught:
        fabric.run(command=count, retry=fabric.Retry(on=(), max=5, exit_codes=(1, 2)))
    assert caught.value.exit_code == 3
    assert (tmp_path / "tries").read_text().count("x") == 3


def test_the_folder_goes_along_and_the_program_runs_in_it_afresh(small_fabric, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.txt").write_text("seven")
    (tmp_path / "go.sh").write_text("#!/bin/sh\ngrep -q seven sub/data.txt && touch new && ls | wc -l > $1")
    (tmp_path / "go.sh").chmod(0o755)
    for _ in range(2):
        assert fabric.run(command=f"./go.sh {tmp_path}/seen", workdir=str(tmp_path)) == 0
        assert (tmp_path / "seen").read_text().strip() == "3"
        (tmp_path / "seen").unlink()


def test_a_function_works_in_the_folder_too_and_finds_its_modules(small_fabric, tmp_path):
    (tmp_path / "in_folder.txt").write_text("here")

    def read():
        return Path("in_folder.txt").read_text()

    assert fabric.run(read, workdir=tmp_path) == "here"
    assert list(fabric.map(lambda _: read(), [1, 2], workdir=tmp_path)) == ["here", "here"]


def test_secrets_are_in_the_environment_of_the_call_and_nowhere_else(small_fabric):
    assert fabric.run(lambda: os.environ["HF_TOKEN"] == SECRET, secrets={"HF_TOKEN": SECRET})
    assert (
        fabric.run(command='[ "$HF_TOKEN" = s3cr3t-value-of-nobody ]', secrets=[fabric.Secret("HF_TOKEN", SECRET)]) == 0
    )
    assert list(fabric.map(lambda _: os.environ["HF_TOKEN"] == SECRET, [1], secrets={"HF_TOKEN": SECRET})) == [True]

    async def later():
        return os.environ["HF_TOKEN"] == SECRET

    assert fabric.run(later, secrets={"HF_TOKEN": SECRET})
    assert fabric.run(lambda: "HF_TOKEN" in os.environ) is False
    assert SECRET not in repr(small_fabric.requests)


def test_a_secret_is_not_in_the_texts_of_errors(small_fabric):
    def leak():
        raise ValueError(f"bad token {os.environ['HF_TOKEN']}")

    with pytest.raises(ValueError, match="bad token <HF_TOKEN>") as caught:
        fabric.run(leak, secrets={"HF_TOKEN": SECRET})
    assert SECRET not in "".join(caught.value.__notes__)


def test_a_secret_is_not_in_the_texts_of_causes_even_when_they_go_round(small_fabric):
    def leak():
        first, second = KeyError(os.environ["HF_TOKEN"]), ValueError("then")
        first.__cause__, second.__cause__ = second, first
        raise second

    with pytest.raises(ValueError, match="then") as caught:
        fabric.run(leak, secrets={"HF_TOKEN": SECRET})
    assert "<HF_TOKEN>" in "".join(caught.value.__notes__)
    assert SECRET not in "".join(caught.value.__notes__)


def test_a_detached_runs_secrets_are_in_its_arguments_which_are_marked(small_fabric):
    fabric.submit(lambda: 7, secrets={"HF_TOKEN": SECRET}).wait(10)
    work = next(body["work"] for method, path, body in small_fabric.requests if (method, path) == ("POST", "/v1/runs"))
    assert work["secret"] is True
    assert SECRET.encode() not in small_fabric.blobs[work["code"]]
    assert SECRET.encode() in small_fabric.blobs[work["args"]]


def test_a_secret_takes_its_value_from_this_process_and_never_shows_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    secret = fabric.Secret("HF_TOKEN")
    assert secret.value == SECRET
    assert SECRET not in repr(secret)
    assert SECRET not in str([secret])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"secrets": {"a-b": SECRET}}, "'a-b' is not the name of a variable"),
        ({"secrets": {"A": ""}}, "A has no value"),
        ({"secrets": {"A": SECRET + "\0"}}, "A has no value"),
        ({"secrets": SECRET}, "neither a dict"),
        ({"secrets": [fabric.Secret("A", "1"), fabric.Secret("A", "2")]}, "names A twice"),
        ({"command": ""}, "is empty"),
        ({"command": [1]}, "not a text for the shell"),
        ({"workdir": 7}, "not the path of a folder"),
        ({"workdir": "/no/such"}, "is not a folder"),
        ({"workdir": "\0"}, "is not a folder"),
        ({"env": ["torch"]}, r"not a fabric\.Env"),
        ({"network": 1}, "not 'none', 'gang', 'open' or a list of hosts"),
        ({"network": "all"}, "not 'none', 'gang', 'open' or a list of hosts"),
        ({"network": ["a b"]}, "not a host"),
    ],
)
def test_what_makes_no_sense_is_refused_without_showing_a_secret(small_fabric, keywords, message):
    given = {"command": "true"} | keywords
    with pytest.raises(fabric.InvalidRequest, match=message) as caught:
        fabric.run(**given)
    assert SECRET not in str(caught.value)
    assert not small_fabric.requests


def test_a_function_and_a_command_or_neither_is_refused(small_fabric):
    with pytest.raises(fabric.InvalidRequest, match="not both"):
        fabric.run(print, command="true")
    with pytest.raises(fabric.InvalidRequest, match="nothing to run"):
        fabric.run()
    with pytest.raises(fabric.InvalidRequest, match="has no keyword 'command'"):
        fabric.map(print, [], command="true")


def test_environment_and_network_are_in_the_request_and_part_of_the_lease(small_fabric):
    env = fabric.Env(pip=["b", "a>=1"])
    assert env == fabric.Env(pip=("a>=1", "b", "b"))
    fabric.run(command="true", env=env, network=["PyPI.org"])
    fabric.run(command="true", env=env, network=["pypi.org"])
    fabric.run(command="true")
    posted = [body for method, path, body in small_fabric.requests if (method, path) == ("POST", "/v1/runs")]
    assert posted[0]["env"] == {"python": "", "pip": ["a>=1", "b"]}
    assert posted[0]["network"] == ["pypi.org"]
    assert posted[0]["startup_timeout_ms"] == 600_000
    assert "env" not in posted[-1]
    assert len(posted) == 2


def test_another_python_needs_a_command(small_fabric):
    with pytest.raises(fabric.InvalidRequest, match="functions do not travel between minors"):
        fabric.run(print, env=fabric.Env(python="3.99"))
    assert fabric.run(command="true", env=fabric.Env(python="3.99")) == 0
    for bad in ({"python": "3"}, {"pip": ["./x"]}, {"pip": "torch"}):
        with pytest.raises(fabric.InvalidRequest, match="Env"):
            fabric.Env(**bad)


def test_the_command_line_passes_on_folder_packages_network_and_secrets(small_fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "x").touch()
    words = ["--workdir", str(tmp_path), "--pip", "a", "--network", "pypi.org", "--secret", "HF_TOKEN"]
    assert cli.main(["run", *words, "--", "sh", "-c", 'test -f x && test "$HF_TOKEN" = s3cr3t-value-of-nobody']) == 0
    request = small_fabric.requests[0][2]
    assert (request["network"], request["env"]["pip"]) == (["pypi.org"], ["a"])


def names(packed):
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        return archive.getnames()


def test_the_same_files_pack_to_the_same_bytes(tmp_path):
    for which in ("one", "two"):
        folder = tmp_path / which
        (folder / "b").mkdir(parents=True)
        for name in ("z", "b/y", "a"):
            (folder / name).write_text(name)
    os.utime(tmp_path / "two" / "a", (1, 1))
    assert pack_workdir(tmp_path / "one") == pack_workdir(tmp_path / "two")


def test_the_ignore_file_leaves_out_what_it_names(tmp_path):
    for name in (
        "keep.py",
        "a.log",
        "keep.log",
        "data/x",
        "src/data/y",
        "out",
        "src/out",
        "__pycache__/c.pyc",
        ".git/HEAD",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".fabricignore").write_text("# what is large\n*.log\n!keep.log\n/data/\n/out\n\n")
    assert names(pack_workdir(tmp_path)) == [
        *(".fabricignore", "keep.log", "keep.py", "src", "src/data", "src/data/y", "src/out")
    ]


def test_a_folder_that_is_too_large_says_what_takes_the_room(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "MAX_BYTES", 3 << 20)
    (tmp_path / "big.bin").write_bytes(bytes(4 << 20))
    with pytest.raises(fabric.InvalidRequest, match=r"more than 3 MiB; .*big\.bin \(4 MiB\).*\.fabricignore"):
        pack_workdir(tmp_path)


def test_links_inside_stay_links_and_links_outside_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "folder" / "link").symlink_to("file")
    unpack_workdir(pack_workdir(tmp_path / "folder"), tmp_path / "there")
    assert (tmp_path / "there" / "link").readlink().name == "file"
    (tmp_path / "folder" / "out").symlink_to("/etc/passwd")
    with pytest.raises(fabric.InvalidRequest, match="the link out leads to /etc/passwd"):
        pack_workdir(tmp_path / "folder")
