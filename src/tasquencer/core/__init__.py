"""What any task decides: work items, failures, retries, policies. Pure: no clock, no randomness, no I/O."""
