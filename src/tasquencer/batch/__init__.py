"""A file of prompts: its rows, the store that holds them, and the window that runs them."""
