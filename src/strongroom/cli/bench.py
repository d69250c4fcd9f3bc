"""``strongroom bench``: how fast a model opens on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from strongroom.cli.chart import check_chart_name, draw_chart
from strongroom.cli.keyring import opener
from strongroom.cli.measure import Measurement, drop_from_cache, load_all, measure, read_all
from strongroom.cli.terminal import note, plain, print_json, report, shown, size_text
from strongroom.cli.verb import Json, Key, PassphraseFd, PassphraseOpens, Quiet, Source, flag, verb
from strongroom.errors import AlreadyExists, MissingExtra, StrongroomError, UnknownFramework, UsageError
from strongroom.keys import Identity
from strongroom.model.location import base_name, is_url
from strongroom.model.parallel import default_threads
from strongroom.model.reader import SealedModel, open_model

__all__ = ["register"]

_EXAMPLES = """
strongroom bench resnet50.sealed -k key.txt
strongroom bench resnet50.sealed -k key.txt --cold --runs 3 --plot bench.svg
strongroom bench model.onnx.sealed -k key.txt --framework onnx --json
"""


def bench(
    source: Source,
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    framework: Annotated[
        str | None,
        typer.Option(
            "--framework",
            metavar="F",
            show_default="found from the files",
            help="The loader, such as torch, safetensors, onnx or tensorflow; an unknown name lists all.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, help="How often each step runs.")
    ] = 5,
    cold: Annotated[
        bool, flag("--cold", help="Drop the model from the page cache before every run.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE", show_default=False, help="Draw a chart: .png, .svg or .pdf."
        ),
    ] = None,
    force: Annotated[bool, flag("--force", help="Replace the chart.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast a model opens here.

    read is every byte from the disk into fresh memory, without decryption; decrypt is the whole model
    in memory, authenticated; load is what the framework's loader returns. Medians of several runs,
    after one that does not count. peak is the memory that a step takes on top of what was there.
    """
    if source == "-":
        raise UsageError("bench needs a file or directory, not standard input.")
    if plot is not None:
        check_chart_name(plot)
        if os.path.lexists(plot) and not force:
            raise AlreadyExists(f"{plot} exists already.", hint="Give --force to replace it.")
    if cold and is_url(source):
        raise UsageError("--cold is for local models.")
    identities = opener(key, passphrase, passphrase_fd)()

    def open_it() -> SealedModel:
        return open_model(source, lambda: identities)

    with open_it() as model:
        empty = model.size == 0
    if empty:
        raise UsageError("The model is empty; there is nothing to measure.")
    before: Callable[[], None] = (lambda: drop_from_cache(source)) if cold else (lambda: None)
    steps: list[Measurement] = []
    works: dict[str, Callable[[], tuple[object, int]]] = {
        "read": lambda: read_all(source),
        "decrypt": lambda: load_all(open_it),
    }
    for name, work in works.items():
        if not quiet:
            note(f"Measuring: {name}, {runs} runs …")
        work()
        steps.append(measure(name, runs, work, before))
    if not quiet:
        note(f"Measuring: load, {runs} runs …")
    why_not = _measure_load(source, identities, framework, runs, before, steps)
    if plot is not None:
        draw_chart(plot, _title(source, steps, cold), steps, force=force)
    if json:
        print_json(
            {
                "source": shown(source),
                "size": steps[1].size,
                "threads": default_threads(),
                "cold": cold,
                "steps": [step.to_json() for step in steps],
                "not_measured": {"load": why_not} if why_not else {},
            }
        )
    else:
        _print(_title(source, steps, cold), steps, why_not)


def _measure_load(
    source: str,
    identities: list[Identity],
    framework: str | None,
    runs: int,
    before: Callable[[], None],
    steps: list[Measurement],
) -> str | None:
    """Add the step ``load`` if a loader fits, or return why none does."""
    from strongroom.loaders import registry

    size = steps[1].size
    name = framework
    try:
        if name is None:
            with open_model(source, lambda: identities) as model:
                name = registry.detect(model)

        def work() -> tuple[object, int]:
            return registry.load(source, key=identities, framework=name), size

        # Imports the framework; and machine code that is only found is not run.
        registry.load(source, key=identities, framework=framework)
        steps.append(measure(f"load ({name})", runs, work, before))
    except (UnknownFramework, MissingExtra) as error:
        if framework is not None:
            raise
        return f"{error.message} {error.hint}" if error.hint else error.message
    except StrongroomError:
        raise
    except Exception as error:  # the framework's own; its text could quote the model
        reason = f"The loader {name} fails with {type(error).__name__}."
        if framework is not None:
            raise UsageError(reason, hint="Give another --framework, or none.") from error
        return reason
    return None


def _title(source: str, steps: list[Measurement], cold: bool) -> str:
    cache = "cold page cache" if cold else "warm page cache"
    name = plain(base_name(shown(source)))
    return f"{name}: {size_text(steps[1].size)}, {default_threads()} threads, {cache}"


def _print(title: str, steps: list[Measurement], why_not: str | None) -> None:
    table = Table.grid(padding=(0, 3))
    table.add_column(style="cyan", no_wrap=True)
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *(Text(head, "bold") for head in ("median", "throughput", "peak", "× read")))
    floor = steps[0].median
    for step in steps:
        table.add_row(
            step.step,
            f"{step.median:.3f} s",
            f"{step.rate / 1e9:.2f} GB/s",
            size_text(max(0, step.peak)),
            f"{step.median / floor:.2f}",
        )
    with report() as out:
        out.print(Text(title, "bold"), soft_wrap=True)
        out.print(Padding(table, (0, 0, 0, 2), expand=False))
        if why_not:
            out.print(Text(f"load was not measured: {plain(why_not)}"), soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "bench", bench, _EXAMPLES)
