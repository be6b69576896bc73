import pytest

from ledger.settings import LedgerSettings


def test_defaults_are_ten_minutes_and_daily_epochs():
    settings = LedgerSettings()
    assert (settings.final_after_ms, settings.epoch_ms) == (600_000, 86_400_000)


@pytest.mark.parametrize(
    "field",
    [{"final_after_ms": -1}, {"epoch_ms": 0}, {"test_price_usd_e18": 0}, {"stake_bps": 199}, {"stake_bps": 1001}],
)
def test_settings_out_of_range_are_refused(field):
    LedgerSettings(stake_bps=200, final_after_ms=0)
    with pytest.raises(ValueError):
        LedgerSettings(**field)
