"""All checkers of the ledger's own rows, in the order in which an audit runs them."""

from ledger import entry_checks, epoch_checks, usage_checks

LEDGER_CHECKS = (*entry_checks.CHECKS, *usage_checks.CHECKS, *epoch_checks.CHECKS)
