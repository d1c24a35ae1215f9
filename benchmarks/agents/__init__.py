"""An agent with tools on `AiAgentTask`, beside the same agent on two frameworks: `make bench-agents`."""
