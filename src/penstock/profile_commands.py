"""`penstock profile`: steps of a model for the simulator (the default), kernels and softmax for engines here."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from penstock.kernel_commands import kernels_command
from penstock.profiling.commands import profile_command
from penstock.softmax_commands import softmax_command

DEFAULT_COMMAND = "steps"


class _StepsUnlessNamed(TyperGroup):
    """`penstock profile --model M` is `penstock profile steps --model M`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if is_named else [DEFAULT_COMMAND, *args])


profile_app = typer.Typer(
    cls=_StepsUnlessNamed,
    help="Measure a model: steps (the default; for `penstock simulate`), kernels and softmax (for engines here).",
    add_completion=False,
)
profile_app.command(DEFAULT_COMMAND)(profile_command)
profile_app.command("kernels")(kernels_command)
profile_app.command("softmax")(softmax_command)
