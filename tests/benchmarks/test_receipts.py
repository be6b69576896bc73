from benchmarks.receipts import measure


def test_every_receipt_that_is_counted_was_acknowledged_and_charged(tmp_path):
    figures = measure(tmp_path, leases=3, ticks=2, batch=2)
    assert figures["receipts"] == 6
    assert figures["charged_dc"] == 3 * 112  # two seconds of three GPUs at USD 2 an hour
    assert figures["receipts_per_s"] > 0
