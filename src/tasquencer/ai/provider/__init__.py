"""The model's provider: the client, its answers, the meaning of its errors, prices."""
