from hypothesis import given
from hypothesis import strategies as st

from ledger import accounts
from ledger.accounts import SOURCES, Account, AccountKind, Asset, asset_of

parts = st.text(max_size=6)


@given(parts, parts, parts, parts)
def test_two_accounts_have_one_name_only_if_they_are_one(owner, sub, other_owner, other_sub):
    one, other = accounts.held(owner, sub), accounts.held(other_owner, other_sub)
    assert (one.name == other.name) == (one == other)


def test_every_kind_has_one_asset_and_only_sources_may_be_below_zero():
    assert {kind for kind in AccountKind if asset_of(kind) is Asset.BCT} == {
        AccountKind.EMISSION,
        AccountKind.BCT_BURNED,
        AccountKind.REMINTABLE,
        AccountKind.PAYABLE,
        AccountKind.STAKING,
        AccountKind.CLAIMED,
    }
    assert [Account(kind).is_source for kind in AccountKind] == [kind in SOURCES for kind in AccountKind]
    assert AccountKind.AVAILABLE not in SOURCES
