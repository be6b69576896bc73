"""The chart of accounts: which accounts exist, in which asset, and which of them may go below zero.

Decides no flow (``ledger.entries``) and stores nothing.
"""

from enum import StrEnum
from typing import NamedTuple


class Asset(StrEnum):
    """DC are whole Data Credits; BCT are wei (10^-18 BCT)."""

    __hash__ = str.__hash__  # of enums it is a Python function, which a close would call ten million times

    DC = "DC"
    BCT = "BCT"


class AccountKind(StrEnum):
    """What an account is for; `owner` and `sub` of an `Account` mean what stands beside each kind."""

    __hash__ = str.__hash__

    # DC
    TEST_CREDIT = "test_credit"  # source of test balances; below zero by what was given
    DEPOSITS = "deposits"  # source of deposits on chain; below zero by what was deposited
    AVAILABLE = "available"  # owner: customer
    HELD = "held"  # owner: customer, sub: lease
    EXITING = "exiting"  # owner: customer
    EXITED = "exited"  # owner: customer; paid out on chain
    USAGE_PENDING = "usage_pending"  # owner: GPU; charged, can still be undone
    USAGE_FINAL = "usage_final"  # owner: GPU, sub: epoch
    BURNED = "burned"  # sub: epoch
    # BCT
    EMISSION = "emission"  # source, sub: epoch; below zero by what the schedule paid
    BCT_BURNED = "bct_burned"  # source; below zero by the BCT burned for DC
    REMINTABLE = "remintable"  # BCT burned for DC and not minted again
    PAYABLE = "payable"  # owner: GPU, sub: holder
    STAKING = "staking"  # sub: epoch; the stakers' share
    CLAIMED = "claimed"  # owner: GPU, sub: holder


SOURCES = frozenset(
    {AccountKind.TEST_CREDIT, AccountKind.DEPOSITS, AccountKind.EMISSION, AccountKind.BCT_BURNED},
)
"""The only accounts that may be below zero: where value enters the ledger from outside."""

CUSTOMER_KINDS = frozenset(
    {AccountKind.AVAILABLE, AccountKind.HELD, AccountKind.EXITING, AccountKind.EXITED},
)
"""Accounts whose owner is a customer."""

_BCT_KINDS = frozenset(
    {
        AccountKind.EMISSION,
        AccountKind.BCT_BURNED,
        AccountKind.REMINTABLE,
        AccountKind.PAYABLE,
        AccountKind.STAKING,
        AccountKind.CLAIMED,
    },
)


class Account(NamedTuple):
    """One account; `owner` and `sub` are empty where the kind has none."""

    kind: AccountKind
    owner: str = ""
    sub: str = ""

    @property
    def asset(self) -> Asset:
        return asset_of(self.kind)

    @property
    def is_source(self) -> bool:
        return self.kind in SOURCES

    @property
    def name(self) -> str:
        """Unique and readable: ``held/alice/lease-7``. Slashes inside a part are escaped."""
        name = "/".join(self)
        if "%" not in name and name.count("/") == len(self) - 1:
            return name
        return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in self)


def asset_of(kind: AccountKind) -> Asset:
    return Asset.BCT if kind in _BCT_KINDS else Asset.DC


def test_credit() -> Account:
    return Account(AccountKind.TEST_CREDIT)


def deposits() -> Account:
    return Account(AccountKind.DEPOSITS)


def available(customer: str) -> Account:
    return Account(AccountKind.AVAILABLE, customer)


def held(customer: str, lease_id: str) -> Account:
    return Account(AccountKind.HELD, customer, lease_id)


def exiting(customer: str) -> Account:
    return Account(AccountKind.EXITING, customer)


def exited(customer: str) -> Account:
    return Account(AccountKind.EXITED, customer)


def usage_pending(gpu_id: str) -> Account:
    return Account(AccountKind.USAGE_PENDING, gpu_id)


def usage_final(gpu_id: str, epoch: int) -> Account:
    return Account(AccountKind.USAGE_FINAL, gpu_id, str(epoch))


def burned(epoch: int) -> Account:
    return Account(AccountKind.BURNED, "", str(epoch))


def emission(epoch: int) -> Account:
    return Account(AccountKind.EMISSION, "", str(epoch))


def bct_burned() -> Account:
    return Account(AccountKind.BCT_BURNED)


def remintable() -> Account:
    return Account(AccountKind.REMINTABLE)


def payable(gpu_id: str, holder: str) -> Account:
    return Account(AccountKind.PAYABLE, gpu_id, holder)


def staking(epoch: int) -> Account:
    return Account(AccountKind.STAKING, "", str(epoch))


def claimed(gpu_id: str, holder: str) -> Account:
    return Account(AccountKind.CLAIMED, gpu_id, holder)
