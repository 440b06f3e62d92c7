"""Write the generated parts of docs/ again: `make docs`, or `python docs/generate.py`. Knows nothing but the code.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; what is around it is written by hand.
tests/unit/test_docs.py fails when a part is not what this script would write.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from fastapi.routing import iter_route_contexts
from pydantic_core import PydanticUndefined

from tunesmith import cli
from tunesmith.api import auth
from tunesmith.api.app import create_app
from tunesmith.domain.models import CATALOGUE, DEFAULT, ModelFacts
from tunesmith.domain.specs import AUTO, HYPERPARAMETERS, TrainingSpec
from tunesmith.settings import Settings
from tunesmith.training import defaults

DOCS = Path(__file__).parent
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: SmolLM2-135M-Instruct and the bundled example, for which "auto" is shown.
_FACTS = CATALOGUE[DEFAULT].facts
_DATA = defaults.DataFacts(num_training=496, num_validation=99)
#: Where the code computes a default, the words that say so.
_COMPUTED = {"data_dir": "the user's data directory (`~/.local/share/tunesmith`)", "cache_dir": "the user's cache (`~/.cache/tunesmith`)"}


def pages() -> dict[Path, str]:
    """Return each page that has generated parts, as it should be."""
    found = {path: path.read_text() for path in sorted(DOCS.glob("*.md"))}
    return {path: _PART.sub(_filled, text) for path, text in found.items() if _PART.search(text)}


def _filled(match: re.Match[str]) -> str:
    return f"{match[1]}\n{PARTS[match[2]]()}\n\n{match[3]}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(value: Any) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _or_none(value: Any) -> str:
    return "none" if value is None else _code(value)


# --- hyperparameters ---


def hyperparameters() -> str:
    """Return the table of hyperparameters."""
    rows = [(_code(h.name), h.help, h.accepted, _or_none(h.train_default), _or_none(h.api_default)) for h in HYPERPARAMETERS]
    return _table(["name", "meaning", "accepted", "default of `tunesmith train`", "default over the API"], rows)


def auto_values() -> str:
    """Return what "auto" becomes for the bundled example, with the reasons a job would show."""
    spec = TrainingSpec.ask("smollm2-135m-instruct", {h.name: AUTO for h in HYPERPARAMETERS if h.name != "seed"}, "api")
    resolved = defaults.resolve(spec, _FACTS, _DATA)
    names = [h.name for h in HYPERPARAMETERS if h.name != "seed"]
    rows = [(_code(name), _or_none(getattr(resolved, name)), resolved.reasons[name].removeprefix("auto: ")) for name in names]
    return _table(["name", "`auto` becomes", "because"], rows)


def auto_by_examples() -> str:
    """Return batch size and epochs over the number of training examples."""
    counts = (10, 20, 50, 100, 1_000, 10_000, 50_000, 200_000)
    rows = [(f"{n:,}", defaults.batch_size(n)[0], defaults.num_epochs(n)[0]) for n in counts]
    return _table(["training examples", "`batch_size`", "`n_epochs`"], rows)


def auto_by_size() -> str:
    """Return the base learning rate over the size of the model."""
    rows = []
    for millions in (33, 135, 360, 1_700, 7_000, 70_000):
        facts = ModelFacts("", num_parameters=millions * 10**6, max_length=1, has_chat_template=True)
        rates = [f"{defaults.base_learning_rate(facts, tuning)[0]:g}" for tuning in ("lora", "full")]
        rows.append((f"{millions:,} M", *rates))
    return _table(["parameters", "LoRA", "full tuning"], rows)


# --- settings ---


def settings() -> str:
    """Return the table of settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = _COMPUTED.get(name) or _setting_default(field)
        rows.append((_code(name), _code(f"TUNESMITH_{name.upper()}"), default, field.description))
    return _table(["setting", "environment", "default", "meaning"], rows)


def _setting_default(field: Any) -> str:
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    return "none" if value in (None, (), {}) else _code(value)


# --- commands ---


def commands() -> str:
    """Return every command with its arguments and options."""
    group: Any = typer.main.get_command(cli.app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    usage = " ".join(["tunesmith", name, *(_argument(argument) for argument in arguments), "[OPTIONS]"])
    rows = [(_code(_argument(argument)), argument.help, "") for argument in arguments]
    rows += [(_code(_option(option)), option.help or "", _option_default(option)) for option in shown if option not in arguments]
    return f"### tunesmith {name}\n\n{command.help}\n\n    {usage}\n\n" + _table(["argument or option", "meaning", "default"], rows)


def _argument(argument: Any) -> str:
    return argument.name.upper() if argument.required else f"[{argument.name.upper()}]"


def _option(option: Any) -> str:
    names = " / ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} VALUE"


def _option_default(option: Any) -> str:
    if option.is_flag:
        return _code(option.opts[0]) if option.default else ""
    return "" if option.default is None else _code(option.default)


# --- endpoints ---


def endpoints() -> str:
    """Return every route with what it does and whether it needs the key."""
    with tempfile.TemporaryDirectory() as directory:
        app = create_app(Settings.load(data_dir=Path(directory), cache_dir=Path(directory), api_key="none"))
        rows = [_endpoint(route) for route in iter_route_contexts(app.routes)]
        app.state.context.close()
    return _table(["endpoint", "what it does"], sorted(rows, key=lambda row: (row[0].split()[1], row[0])))


def _endpoint(route: Any) -> tuple[str, str]:
    method = next(iter(route.methods - {"HEAD"}))
    words = (route.endpoint.__doc__ or "Describe this API in OpenAPI's format.").splitlines()[0]
    public = "" if (method, route.path) not in auth.PUBLIC or "no key" in words else " Needs no key."
    return f"`{method} {route.path.replace(':path', '')}`", words + public


PARTS: dict[str, Callable[[], str]] = {
    "hyperparameters": hyperparameters,
    "auto-values": auto_values,
    "auto-by-examples": auto_by_examples,
    "auto-by-size": auto_by_size,
    "settings": settings,
    "commands": commands,
    "endpoints": endpoints,
}


if __name__ == "__main__":
    for page, content in pages().items():
        page.write_text(content)
        print(page)
