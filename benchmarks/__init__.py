"""What a work item costs: `AiAgentTask` beside plain Temporal workflows. Run `make bench`."""
