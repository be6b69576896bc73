import pytest

from ledger import queries
from ledger.closing import EpochTerms
from ledger.errors import PoolTermsRefused
from ledger.leaves import gpu_id_hex
from ledger.poolbook import PoolBook, Signed
from ledger.pools import Entrance, Membership, PoolRules, distributed, self_pool
from ledger.split import PoolTerms

GPU, OPERATOR, OWNER = gpu_id_hex("GPU-1"), "0x" + "99" * 20, "0x" + "11" * 20
SIGNED = Signed(OPERATOR, b"signature", 7)
TERMS = PoolTerms(2000, 0, 8000, OPERATOR, {"H100": 2}, 300_000)


@pytest.fixture
def pools(session) -> PoolBook:
    return PoolBook(session, PoolRules(exit_delay_epochs=2))


@pytest.fixture
def founded(pools) -> PoolBook:
    """Pool p by invitation, in force from epoch 1."""
    pools.found("p", TERMS, Entrance.INVITED, now_epoch=0, signed=SIGNED)
    return pools


def test_terms_come_back_as_they_were_signed_and_hold_from_their_epoch(founded):
    later = founded.change_terms("p", *self_pool(), now_epoch=1, signed=SIGNED)
    assert founded.terms_in(0) == {}
    assert founded.terms_in(1) == founded.terms_in(later.from_epoch - 1) == {"p": TERMS}
    assert founded.terms_in(later.from_epoch) == {"p": self_pool()[0]}


def test_a_pools_name_is_taken_once(founded):
    with pytest.raises(PoolTermsRefused, match="already"):
        founded.found("p", *distributed(), now_epoch=0, signed=SIGNED)
    founded.found("q", *distributed(), now_epoch=0, signed=SIGNED)
    with pytest.raises(PoolTermsRefused, match="no pool"):
        founded.change_terms("r", *distributed(), now_epoch=0, signed=SIGNED)


def test_a_member_counts_from_the_next_epoch_until_its_exit_delay_is_over(founded):
    founded.join("p", GPU, now_epoch=1, signed=SIGNED, invited=True)
    out = founded.leave(GPU, now_epoch=3, signed=SIGNED)
    assert founded.leave(GPU, now_epoch=4, signed=SIGNED) == out
    assert founded.stays(GPU) == [Membership(GPU, "p", 2, 6)]
    assert [founded.pool_of(GPU, epoch) for epoch in (1, 2, 5, 6)] == [None, "p", "p", None]


def test_a_gpu_can_come_back_after_it_left(founded):
    founded.join("p", GPU, now_epoch=1, signed=SIGNED, invited=True)
    founded.leave(GPU, now_epoch=1, signed=SIGNED)
    with pytest.raises(PoolTermsRefused, match="leave it first"):
        founded.join("p", GPU, now_epoch=2, signed=SIGNED, invited=True)
    founded.join("p", GPU, now_epoch=3, signed=SIGNED, invited=True)
    assert founded.stays(GPU) == [Membership(GPU, "p", 2, 4), Membership(GPU, "p", 4)]


def test_nobody_joins_uninvited_or_before_the_terms_hold(founded):
    with pytest.raises(PoolTermsRefused, match="once its terms hold"):
        founded.join("p", GPU, now_epoch=0, signed=SIGNED, invited=True)
    with pytest.raises(PoolTermsRefused, match="invite"):
        founded.join("p", GPU, now_epoch=1, signed=SIGNED)


def test_only_a_member_of_poor_reputation_is_kicked(founded):
    with pytest.raises(PoolTermsRefused, match="no pool"):
        founded.kick(GPU, 0, now_epoch=1, signed=SIGNED)
    founded.join("p", GPU, now_epoch=1, signed=SIGNED, invited=True)
    with pytest.raises(PoolTermsRefused, match="reputation"):
        founded.kick(GPU, 9000, now_epoch=2, signed=SIGNED)
    assert founded.kick(GPU, 100, now_epoch=2, signed=SIGNED).until_epoch == 5


def test_an_epoch_closes_under_the_terms_that_its_pools_had(founded, funded, session, use, clock):
    clock.advance(3_600_000)
    funded.charge("lease-1", use(1, 180_000, pool="p", holder=OWNER))
    clock.advance(3_600_000)
    funded.close_epoch(1, EpochTerms(pools=founded.terms_in(1)))
    paid = {payout.holder: payout.wei for payout in queries.payouts_upto(session, 1)}
    assert paid[OPERATOR] * 4 == paid[OWNER]
