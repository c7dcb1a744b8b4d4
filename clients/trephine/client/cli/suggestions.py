"""Where a word is known that is no command of its own: `trephine plan` is `trephine export --plan`."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from typer.core import TyperGroup

_MOST = 4


class SuggestingGroup(TyperGroup):
    """Commands that answer an unknown one with where its word occurs, if no command is spelt like it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Look a command up; a misspelt one is suggested by the parent class."""
        word = args[0]
        if self.get_command(ctx, word) is None and not get_close_matches(word, self.commands):
            found = list(dict.fromkeys(_places(self, word)))[:_MOST]
            if found:
                ctx.fail(f"No such command {word!r}. Did you mean {', '.join(map(repr, found))}?")
        return super().resolve_command(ctx, args)


def _places(group: TyperGroup, word: str) -> Iterator[str]:
    """Commands of groups that are called so, then commands that have an option of that name."""
    groups = {name: each for name, each in group.commands.items() if isinstance(each, TyperGroup)}
    yield from (f"{name} {word}" for name, each in groups.items() if word in each.commands)
    leaves = {name: each for name, each in group.commands.items() if name not in groups}
    for name, each in groups.items():
        leaves |= {f"{name} {below}": command for below, command in each.commands.items()}
    for name, command in leaves.items():
        if any(f"--{word}" in parameter.opts for parameter in command.params):
            yield f"{name} --{word}"
