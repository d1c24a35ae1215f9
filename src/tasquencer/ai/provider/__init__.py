"""The model's provider: the client, its answers, what its errors mean, prices."""
