"""What is typed: nothing counts twice or for nothing, and near misses lead to the right words."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fmnist_tracking.config import FIELDS, SEARCH_FLAGS, did_you_mean, flag, setting_called
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.redact import without_user

# Of options that take a list, as their help shows it.
LIST_METAVAR = "N,N,…"
AXIS = "--axis"
_RUN_ID, _FINAL = "--run-id", "--final"
_END_OF_OPTIONS = "--"


@dataclass
class _Given:
    """An option as it was typed, with its value and the words after that which belong to none."""

    option: str | None
    value: str | None = None
    strays: list[int] = field(default_factory=list)  # their places


class Group(TyperGroup):
    """The program: options of a command come after its name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before a command, or say what is wrong there."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        first = args[0].partition("=")[0] if args else ""
        if first.startswith("-") and first not in own and not ctx.resilient_parsing:
            place = next((n for n, word in enumerate(args) if word in self.commands), None)
            if place is None:
                raise ConfigError(
                    f"No such option: {first}.{did_you_mean(first, own)} Expected a command first; "
                    "`fmnist-track --help` lists them."
                )
            words = ["fmnist-track", args[place], *args[:place], *args[place + 1 :]]
            typed = shlex.join(without_user(word) for word in words)
            raise ConfigError(f"Expected options after the command: {typed}")
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command, which may take a run without `--run-id` where it has no other arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read options, or say what is wrong with them.

        Raises:
            ConfigError: an option is unknown, given twice or without a value, or a word belongs to
                no option.
        """
        if not ctx.resilient_parsing:
            given = list(self._given(args, ctx))
            self._refuse_twice(given)
            args = self._with_run(args, given)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the line `Usage:` of --help."""
        return [*super().collect_usage_pieces(ctx), *(["[ID]"] if self._takes_run else [])]

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return what can stand here: the name of an option, or a run."""
        found = super().shell_complete(ctx, incomplete)
        if self._takes_run and not incomplete.startswith("-"):
            option = next(p for p in self.params if _RUN_ID in p.opts)
            found += option.shell_complete(ctx, incomplete)
        return found

    @property
    def _takes_run(self) -> bool:
        has_arguments = any(p.param_type_name == "argument" for p in self.params)
        options = {name for p in self.params for name in p.opts}
        # A stray word of `train`, which trains by settings too, is more likely one of their values.
        return not has_arguments and _RUN_ID in options and _FINAL not in options

    def _given(self, args: Sequence[str], ctx: Any) -> Iterator[_Given]:
        """Yield the options in the order they were typed, each with the words that follow it."""
        known: dict[str, Any] = {n: p for p in self.get_params(ctx) for n in p.opts}
        current, place = _Given(None), 0
        while place < len(args):
            word = args[place]
            name, equals, value = word.partition("=")
            if word == _END_OF_OPTIONS:
                current.strays += range(place + 1, len(args))
                break
            if not word.startswith("-") or word == "-":
                current.strays.append(place)
            elif name not in known:
                raise ConfigError(self._unknown(name, value if equals else _next(args, place)))
            else:
                yield current
                current = _Given(name)
                if equals:
                    current.value = value
                elif not known[name].is_flag:
                    place += 1
                    current.value = args[place] if place < len(args) else None
                    if current.value in known:
                        raise ConfigError(
                            f"Expected a value after {name}, got the option {current.value}."
                        )
            place += 1
        yield current

    def _refuse_twice(self, given: Sequence[_Given]) -> None:
        for name, option in {n: p for p in self.params for n in p.opts}.items():
            values = [g.value for g in given if g.option == name and g.value is not None]
            if len(values) > 1 and not option.multiple:
                once = "Give it once."
                if option.metavar == LIST_METAVAR:
                    joined = ",".join(value.strip(",") for value in values)
                    once = f"Give all its values at once: {name} {shlex.quote(joined)}"
                raise ConfigError(f"{name} was given twice. {once}")

    def _with_run(self, args: list[str], given: Sequence[_Given]) -> list[str]:
        """Return the arguments, with `--run-id` before a run that was typed without it."""
        strays = [place for option in given for place in option.strays]
        if not strays or any(p.param_type_name == "argument" for p in self.params):
            return args
        lists = {n for p in self.params if p.metavar == LIST_METAVAR for n in p.opts} | {AXIS}
        for option in given:
            if option.strays and option.option in lists and option.value is not None:
                values = [option.value, *(args[place] for place in option.strays)]
                joined = ",".join(value.strip(",") for value in values)
                raise ConfigError(
                    f"Expected {option.option} to list its values with commas, got spaces between "
                    f"them. Try: {option.option} {shlex.quote(joined)}"
                )
        if not self._takes_run or len(strays) > 1:
            words = " ".join(map(repr, (args[place] for place in strays)))
            raise ConfigError(
                f"Expected options alone, got {words}. See `fmnist-track {self.name} --help`."
            )
        run = args[strays[0]]
        named = [g.value for g in given if g.option == _RUN_ID]
        if named and named != [run]:
            raise ConfigError(f"Expected one run, got {run!r} and {_RUN_ID} {named[0]!r}.")
        others = [word for place, word in enumerate(args) if place != strays[0]]
        return others if named else [_RUN_ID, run, *others]

    def _unknown(self, name: str, value: str | None) -> str:
        """Return what to say of an option that does not exist."""
        options = [n for p in self.params for n in p.opts if n.startswith("--")]
        setting = setting_called(name)
        spelled = [flag(setting), SEARCH_FLAGS.get(setting)] if setting else []
        near = next((word for word in spelled if word in options), None)
        if setting and not near and AXIS in options:
            example = value if value is not None else f"{FIELDS[setting].default:g}"
            return (
                f"No such option: {name}. Here, {setting} is given as an axis: "
                f"{AXIS} {shlex.quote(f'{setting}={example}')}"
            )
        question = f" Did you mean {near}?" if near else did_you_mean(name, options)
        return f"No such option: {name}.{question} See `fmnist-track {self.name} --help`."


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether a person typed an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _next(args: Sequence[str], place: int) -> str | None:
    """Return the word after one, if it can be a value."""
    after = args[place + 1 : place + 2]
    return after[0] if after and not after[0].startswith("-") else None
