"""`python -m benchmarks.peers`: beside Temporal's native retry, DBOS and Restate."""
