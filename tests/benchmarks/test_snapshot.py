from benchmarks.snapshot import measure


def test_the_whole_fleet_with_its_leases_is_rebuilt(tmp_path):
    figures = measure(tmp_path, gpus=64, rounds=2)
    assert (figures["gpus"], figures["nodes"], figures["leases"], figures["free_gpus"]) == (64, 8, 48, 16)
    assert figures["seconds"] > 0
