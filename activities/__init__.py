"""Effects on the world: the AI call. Dependencies come in through the constructor."""
