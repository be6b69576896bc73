"""The double-entry ledger in two assets, its epochs and what they pay. Start at `ledger.store.Ledger`."""
