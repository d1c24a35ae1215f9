"""`tasq batch`: run prompts from a file, each as its own task, and write the answers to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from tasquencer.cli import options
from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.core.errors import InvalidRequest

__all__ = ["batch_commands"]

RUN_EXAMPLES = examples(
    "tasq batch prompts.jsonl --out results.jsonl --concurrency 100",
    "tasq batch prompts.jsonl --out results.jsonl --model gpt-5-mini --max-failure-fraction 0.05",
    "zcat prompts.jsonl.gz | tasq batch - --id night-run --out results.jsonl --skip-invalid wrong.jsonl",
    "tasq batch run results.failed.jsonl --out second-try.jsonl --max-retries 10",
)

_OUTPUT = "Output"


class _RunsByDefault(TyperGroup):
    """`tasq batch FILE` is `tasq batch run FILE`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """See the base class."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


batch_commands = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    epilog=examples(
        "tasq batch prompts.jsonl --out results.jsonl",
        "tasq batch attach prompts-3f2a9c01be --out results.jsonl",
        'tasq batch pause prompts-3f2a9c01be --reason "the provider is slow"',
        "tasq batch run --help",
    ),
    help="Answer any number of prompts, each as its own task. `tasq batch FILE` means `tasq batch run FILE`.",
)

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Where to write the results. Default: standard output.", rich_help_panel=_OUTPUT
    ),
]
Failures = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Where to write the lines without an answer, with the reason. This file can be the input of "
        "another batch. Default: NAME.failed.jsonl "
        "beside --out.",
        rich_help_panel=_OUTPUT,
    ),
]
OutputFormat = Annotated[
    Literal["tasq", "openai"],
    typer.Option(
        "--format",
        help="The format of both files. openai: that of the output and error files of OpenAI's Batch API.",
        rich_help_panel=_OUTPUT,
    ),
]
Unordered = Annotated[
    bool,
    typer.Option(
        "--unordered",
        help="Write results as they arrive. Default: in the order of the input.",
        rich_help_panel=_OUTPUT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the batch's end as JSON.", rich_help_panel=_OUTPUT)]
Reason = Annotated[str | None, typer.Option(help="Shown with the progress.")]
Actor = Annotated[str | None, typer.Option(help="Who acts. Default: your user name.")]


@batch_commands.command(epilog=RUN_EXAMPLES)
@options.with_call_options
@options.with_tool_options
@options.with_policy_options(whole="batch", parts="rows")
def run(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help='One JSON object per line: "prompt" or "messages", an "id", and other fields of the '
            "request. Or an input file of OpenAI's Batch API. - reads standard input.",
        ),
    ],
    out: Out = None,
    failures: Failures = None,
    format: OutputFormat = "tasq",  # noqa: A002 (the option's name)
    unordered: Unordered = False,
    skip_invalid: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Continue without the wrong lines, and write them to this file."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Tasks at the same time, 1 to 1000. Default: 50.")
    ] = None,
    policy: options.Policy = {},  # noqa: B006 (the decorator gives it)
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the failed lines of a completed batch again.")
    ] = False,
    calls: options.Calls = {},  # noqa: B006 (the decorator gives it)
    tools: options.Tools = {},  # noqa: B006 (the decorator gives it)
    batch_id: Annotated[
        str | None,
        typer.Option("--id", help="The batch's id. Default: from the file's name and content."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the batch's id and leave it running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer each line of a file of prompts, and write the results to a file.

    The options about calls and tools are defaults for fields that a line does not
    have. All lines are checked before anything starts. If you run the same
    file again, the batch continues: lines with an answer are not asked
    again. Ctrl-C stops watching, not the batch.

    Exit status as for `tasq run`.
    """
    from tasquencer.batch.rows import parse_batch
    from tasquencer.cli.batch_input import StagedRows
    from tasquencer.cli.batch_output import BatchFiles, Format
    from tasquencer.cli.batch_running import id_of, run_batch, stage
    from tasquencer.cli.request import check_request

    request = check_request({"concurrency": concurrency, **policy}, parse_batch)
    defaults = check_request({**calls, **tools}, _parse_defaults)
    if batch_id is not None:
        _check_id(batch_id)
    if detach and (out is not None or failures is not None or unordered):
        raise CommandFailed(
            "--detach: takes no --out, --failures or --unordered: `tasq batch attach` does", ExitCode.USAGE
        )
    _check_output(out, as_json=as_json and not detach)
    files = BatchFiles.of(
        out, failures, Format(format), source=None if str(file) == "-" else file, aside=skip_invalid
    )
    rows = StagedRows(defaults)
    try:
        stage(file, defaults, rows, skip_invalid)
        chosen = batch_id or id_of(file, rows.digest)
        end_with(
            run_batch(
                rows,
                chosen,
                defaults,
                request,
                files,
                retry_failed=retry_failed,
                unordered=unordered,
                detach=detach,
                as_json=as_json,
            )
        )
    finally:
        rows.close()


@batch_commands.command(epilog=examples("tasq batch attach prompts-3f2a9c01be --out results.jsonl"))
def attach(
    batch: BatchId,
    out: Out = None,
    failures: Failures = None,
    format: OutputFormat = "tasq",  # noqa: A002 (the option's name)
    unordered: Unordered = False,
    as_json: Json = False,
) -> None:
    """Follow a batch that was started earlier, and write its results at its end.

    If the batch has ended, the results are written immediately. Exit status
    as for `tasq run`.
    """
    from tasquencer.cli.batch_output import BatchFiles, Format
    from tasquencer.cli.batch_running import attach_to

    _check_output(out, as_json=as_json)
    end_with(
        attach_to(batch, BatchFiles.of(out, failures, Format(format)), unordered=unordered, as_json=as_json)
    )


@batch_commands.command(epilog=examples("tasq batch status prompts-3f2a9c01be --json"))
def status(
    batch: BatchId, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Print the progress of a batch."""
    from tasquencer.cli.batch_running import print_status

    end_with(print_status(batch, as_json=as_json))


@batch_commands.command(epilog=examples('tasq batch pause prompts-3f2a9c01be --reason "too expensive"'))
def pause(batch: BatchId, reason: Reason = None, actor: Actor = None) -> None:
    """Start no further tasks of a batch. Tasks that are running continue."""
    from tasquencer.cli.batch_running import act

    end_with(act(batch, "pause", actor, reason))


@batch_commands.command(epilog=examples("tasq batch resume prompts-3f2a9c01be"))
def resume(batch: BatchId, reason: Reason = None, actor: Actor = None) -> None:
    """Let a paused batch continue."""
    from tasquencer.cli.batch_running import act

    end_with(act(batch, "resume", actor, reason))


def _check_id(batch_id: str) -> None:
    from tasquencer.batch.rows import check_batch_id

    try:
        check_batch_id(batch_id)
    except InvalidRequest as invalid:
        raise CommandFailed(f"--{invalid}", ExitCode.USAGE) from None


def _check_output(out: Path | None, *, as_json: bool) -> None:
    if as_json and (out is None or str(out) == "-"):
        raise CommandFailed(
            "--json: needs --out FILE, because the JSON goes to standard output", ExitCode.USAGE
        )


def _parse_defaults(raw: object) -> object:
    from tasquencer.ai.request import AgentOptions
    from tasquencer.core.validation import validated

    return validated(AgentOptions, raw, example="{}")
