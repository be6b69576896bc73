import msgpack
import pytest

from fabric.wire.checkpoints import MAX_FILES, ManifestError, pack_manifest, read_manifest

DIGEST = "ab" * 32


def test_a_manifest_comes_back_as_it_was():
    files = [("model.pt", [DIGEST, DIGEST]), ("logs/empty..txt", [])]
    assert read_manifest(pack_manifest(files)) == files


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/passwd", "", ".", "..", "a\0b"])
def test_a_file_outside_the_folder_is_refused(name):
    with pytest.raises(ManifestError, match="inside the checkpoint's folder"):
        read_manifest(pack_manifest([(name, [])]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb({"a": []}),
        msgpack.packb([["a"]]),
        msgpack.packb([["a", "not a list"]]),
        msgpack.packb([["a", [b"bytes"]]]),
        msgpack.packb([["a", ["short"]]]),
        msgpack.packb([[1, []]]),
        msgpack.packb([["f", []]] * (MAX_FILES + 1)),
        b"\x91" * 5000,
    ],
)
def test_what_is_no_manifest_is_refused(body):
    with pytest.raises(ManifestError):
        read_manifest(body)
