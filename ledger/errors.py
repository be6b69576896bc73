"""What can go wrong with money.

LedgerError
├── InsufficientFunds      a customer has less available than is asked for
├── BudgetExceeded         charged and held of a run would pass its budget
├── InvalidAmount          an amount that is no integer, negative, zero or too large
├── UnbalancedEntry        postings of one asset do not sum to zero
├── ForbiddenFlow          balanced, but this kind of entry may not move money between these accounts
├── Overdrawn              an account that is no customer's would fall below zero
├── SourceConflict         the same source_id with other content
├── NoHold                 a charge or a release for a lease that has no open hold
├── UsageOutOfOrder        a cumulative meter that went back
├── UsageTooLate           usage whose time of acceptance is final already
├── UsageIsFinal           an undo of usage that is final
├── EpochOutOfOrder        a close that is not the next one
├── EpochNotOver           a close before the epoch's end, or before its usage is final
└── PoolTermsRefused       terms or a change of membership outside the rules
"""


class LedgerError(Exception):
    """Root of the package's errors."""


class InsufficientFunds(LedgerError):
    """``needed_dc`` was asked for, ``available_dc`` is there."""

    def __init__(self, customer: str, *, needed_dc: int, available_dc: int) -> None:
        self.customer, self.needed_dc, self.available_dc = customer, needed_dc, available_dc
        super().__init__(
            f"customer {customer} needs {needed_dc} DC and has {available_dc} DC available; "
            "deposit DC or lower the price"
        )


class BudgetExceeded(LedgerError):
    """A hold would take a run above its budget."""

    def __init__(self, run_id: str, *, needed_dc: int, left_dc: int) -> None:
        self.run_id, self.needed_dc, self.left_dc = run_id, needed_dc, left_dc
        super().__init__(f"run {run_id} needs {needed_dc} DC and has {left_dc} DC of its budget left; raise the budget")


class InvalidAmount(LedgerError):
    pass


class UnbalancedEntry(LedgerError):
    pass


class ForbiddenFlow(LedgerError):
    pass


class Overdrawn(LedgerError):
    pass


class SourceConflict(LedgerError):
    pass


class NoHold(LedgerError):
    pass


class UsageOutOfOrder(LedgerError):
    pass


class UsageTooLate(LedgerError):
    pass


class UsageIsFinal(LedgerError):
    pass


class EpochOutOfOrder(LedgerError):
    pass


class EpochNotOver(LedgerError):
    pass


class PoolTermsRefused(LedgerError):
    pass
