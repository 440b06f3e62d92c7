"""The command line: parses, calls, prints. stdout is data, stderr is progress; torch is imported only by what needs it."""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from tunesmith.domain import ids
from tunesmith.domain import models as model_names
from tunesmith.domain.jobs import Request
from tunesmith.domain.specs import AUTO, HYPERPARAMETERS
from tunesmith.errors import InvalidRequest, TunesmithError

app = typer.Typer(
    help="Fine-tune language models on your own machines through the OpenAI fine-tuning API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept. Default: TUNESMITH_DATA_DIR, else the user data directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line; an error the user can mend is one message on stderr and exit status 1."""
    try:
        app()
    except TunesmithError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. Default: 8321.")] = None,
    data_dir: DataDir = None,
    with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the API and run one worker."""
    from tunesmith import server  # noqa: PLC0415 - commands import what they need, so that --help is quick
    from tunesmith.settings import Settings  # noqa: PLC0415

    server.run(Settings.load(host=host, port=port, data_dir=data_dir), with_parent=with_parent)


@app.command()
def worker(data_dir: DataDir = None) -> None:
    """Run one more worker on the same data directory and database."""
    from tunesmith.settings import Settings  # noqa: PLC0415
    from tunesmith.worker import worker as worker_module  # noqa: PLC0415

    worker_module.main(Settings.load(data_dir=data_dir))


def _train(data: Path, valid: Path | None, model: str, output: Path | None, json_output: bool, **options: str | bool | None) -> None:
    """Fine-tune a model on a JSONL file, with no server. The same command goes on with an interrupted run."""
    from rich.console import Console  # noqa: PLC0415

    from tunesmith import progress, run  # noqa: PLC0415

    given = {name: value for name, value in options.items() if value is not None}
    asked: dict[str, Any] = {name: _value(value) if isinstance(value, str) else value for name, value in given.items()}
    with progress.RunProgress(Console(stderr=True)) as bar:
        result = run.train(
            data, model=model, valid=valid, output=output,
            on_metric=lambda point: bar.show(point.to_dict()),
            on_event=lambda event: bar.say(event.message, "yellow" if event.level == "warn" else ""),
            request=_pause_on_interrupt(bar.say), **asked,
        )  # fmt: skip
    if json_output:
        print(json.dumps({"directory": str(result.directory), "result": result.result, **result.summary}))
    else:
        _print_run(result)
    if result.result is None:
        print("Interrupted. The same command goes on from the last finished step.", file=sys.stderr)
        raise typer.Exit(130)


def _train_signature() -> inspect.Signature:
    """Give `_train` one option for each hyperparameter of the table."""

    def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)

    parameters = [
        option("data", Annotated[Path, typer.Argument(help="Training examples, JSONL.")], inspect.Parameter.empty),
        option("valid", Annotated[Path | None, typer.Option(help="Validation examples, JSONL.")], None),
        option("model", Annotated[str, typer.Option(help="Base model: a catalogue name, or one the settings allow.")], model_names.DEFAULT),
        option("output", Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<time>.")], None),
        option("json_output", Annotated[bool, typer.Option("--json", help="Print the result as JSON.")], False),
    ]
    for h in HYPERPARAMETERS:
        default = "none" if h.train_default is None else h.train_default
        words = f"{h.help} {h.accepted[0].upper()}{h.accepted[1:]}. Default: {default}.".replace("or null", "or 'none'")
        if h.kind is bool:
            parameters.append(option(h.name, Annotated[bool | None, typer.Option(help=f"{h.help} Default: {default}.")], None))
        else:
            parameters.append(option(h.name, Annotated[str | None, typer.Option(help=words, metavar="VALUE")], None))
    return inspect.Signature(parameters)


def _value(text: str) -> Any:
    """Read an option: 'auto', 'none', a number, or a word."""
    if text.lower() in (AUTO, "none"):
        return AUTO if text.lower() == AUTO else None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _pause_on_interrupt(say: Callable[[str, str], None]) -> Callable[[], Request]:
    """Turn the first Ctrl-C or SIGTERM into a checkpoint at the next micro-batch; the second one ends at once."""
    asked: list[Request] = ["run"]

    def interrupt(number: int, frame: FrameType | None) -> None:
        if asked[0] == "pause":
            sys.exit(130)
        asked[0] = "pause"
        say("Stopping: saving a checkpoint. Press Ctrl-C again to end without.", "yellow")

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    return lambda: asked[0]


def _print_run(result: Any) -> None:
    print(f"Run folder: {result.directory}")
    if result.result:
        print(f"Ended at step {result.result['step']}: {result.result['reason']}")
    for name in ("loss.png", "token_accuracy.png", "step_metrics.csv", "adapter", "model"):
        if (result.directory / name).exists():
            print(f"  {result.directory / name}")
    for name in result.summary.get("base", {}):
        base, tuned, difference = (result.summary[column][name] for column in ("base", "tuned", "difference"))
        print(f"{name}: base {base:.4f} -> tuned {tuned:.4f} ({difference:+.4f})")


_train.__signature__ = _train_signature()  # type: ignore[attr-defined]
_train.__annotations__ = {name: p.annotation for name, p in _train.__signature__.parameters.items()}  # type: ignore[attr-defined]
app.command("train")(_train)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A base, a fine-tuned model or checkpoint, or a run folder.")],
    message: Annotated[str | None, typer.Argument(help="Say this and print the answer; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token each time.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Talk to a model."""
    from tunesmith import processes  # noqa: PLC0415

    processes.compute_here()
    from tunesmith import conversation  # noqa: PLC0415
    from tunesmith.settings import Settings  # noqa: PLC0415

    loaded = conversation.open_model(model, Settings.load(data_dir=data_dir))
    conversation.talk(loaded, message, system, {"temperature": temperature, "max_tokens": max_tokens, "seed": seed})


@app.command()
def diagnose(
    log: Annotated[
        str, typer.Argument(help="A run folder, a job's id, or any training log: CSV, step_metrics.csv, trainer_state.json, a model card.")
    ],
    json_output: Json = False,
    md: Annotated[bool, typer.Option("--md", help="Print a Markdown report.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves with the findings on them, into this PNG.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Say what happened in a run, which checkpoint to use and what to change."""
    from tunesmith.diagnosis import render, report  # noqa: PLC0415

    if md and json_output:
        raise typer.BadParameter("give one of --json and --md", param_hint="--md")
    history = _history(log, data_dir)
    found = report.diagnose(history)
    if plot is not None:
        from tunesmith import plots  # noqa: PLC0415

        plots.save_diagnosis(history, found, plot, title=log)
    print(json.dumps(found.to_dict()) if json_output else render.markdown(found, log) if md else render.text(found))


def _history(log: str, data_dir: Path | None) -> Any:
    """Return the history behind a path or a job's id."""
    from tunesmith import logs  # noqa: PLC0415

    if not log.startswith(ids.JOB) or Path(log).exists():
        return logs.read(Path(log))
    from tunesmith import services  # noqa: PLC0415
    from tunesmith.services import diagnoses  # noqa: PLC0415
    from tunesmith.settings import Settings  # noqa: PLC0415

    settings = Settings.load(data_dir=data_dir)
    if not settings.data_dir.is_dir() and not settings.database_url:
        raise InvalidRequest(f"There is no job {log!r}: {str(settings.data_dir)!r} does not exist. Hint: give the server's --data-dir.")
    context = services.open(settings)
    try:
        return diagnoses.history(context.db, log)
    finally:
        context.close()


@app.command()
def models(data_dir: DataDir = None, json_output: Json = False) -> None:
    """List the bases that may be used and the models made from them."""
    from tunesmith import conversation  # noqa: PLC0415
    from tunesmith.settings import Settings  # noqa: PLC0415

    rows = conversation.list_models(Settings.load(data_dir=data_dir))
    if json_output:
        print(json.dumps(rows))
        return
    for row in rows:
        print("\t".join(str(row[key]) for key in ("name", "kind", "state")))


@app.command()
def doctor(data_dir: DataDir = None, json_output: Json = False) -> None:
    """Say what this machine can do and what is missing. Exit status 1 when something is."""
    from tunesmith import doctor as doctor_module  # noqa: PLC0415
    from tunesmith.settings import Settings  # noqa: PLC0415

    checks = doctor_module.examine(Settings.load(data_dir=data_dir))
    if json_output:
        print(json.dumps([check.__dict__ for check in checks]))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'missing'}  {check.name:<{width}}  {check.found}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Where the demo keeps its data.")] = Path(".demo"),
    examples: Annotated[Path | None, typer.Option(help="Folder with train.jsonl, valid.jsonl, test.jsonl.")] = None,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions to ask both models.")] = 40,
    wait: Annotated[bool, typer.Option(help="Keep the server up until Ctrl-C.")] = True,
) -> None:
    """Fine-tune the bundled example through a real server and the openai client."""
    from tunesmith import demo as demo_module  # noqa: PLC0415

    demo_module.run(data_dir, examples, questions, wait)


if __name__ == "__main__":
    main()
