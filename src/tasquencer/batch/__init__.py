"""A file of prompts: its rows, the store that holds them, the window that carries them out."""
