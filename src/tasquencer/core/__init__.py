"""The decisions of any task: work items, failures, retries, policies. Pure: no clock, randomness or I/O."""
