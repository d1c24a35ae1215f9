"""The ledger's contract, a ledger in memory, comparison and reconciliation."""
