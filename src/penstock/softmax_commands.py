"""`penstock profile softmax`: record the scores of a model's attention, and keep them for `--softmax unified`."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Annotated

import typer

from penstock.core.errors import ConfigError
from penstock.flags import Device, Dtype, LoadFormat, Threads
from penstock.kernel_commands import load_plain
from penstock.options import EngineOptions
from penstock.workload.commands import one_line_errors

N_PROMPTS, PROMPT_TOKENS = 16, 512


def softmax_command(
    model: Annotated[str, typer.Option(help="A Hugging Face directory, a GGUF file, or a bundled model.")] = (
        "penstock-tiny"
    ),
    prompts: Annotated[
        Path | None, typer.Option(help="A text like yours, of which parts are read. [default: files of this Python]")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    load_format: LoadFormat = "auto",
    threads: Threads = None,
) -> None:
    """Run prompts through a model, show where each layer's softmax can have its maximum, and keep it by checkpoint."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    with one_line_errors():
        path = EngineOptions(model=model).model_path
        decoder = load_plain(path, dtype, device, load_format, native_kernels=False, threads=threads)
        from penstock.runtime.calibrate import (
            CalibrationFile,
            checkpoint_key,
            fit_layers,
            path_of,
            record,
            write_calibration,
        )

        most_tokens = decoder.spec.max_position_tokens
        ids = calibration_prompts(path, prompts, min(PROMPT_TOKENS, most_tokens))
        layers = record(decoder, ids)
        table = Table(title=f"Scores of {len(ids)} prompts, contexts of up to {most_tokens}", title_justify="left")
        for column in ("layer", "rows' largest scores", "maximum", "safe from", "to"):
            table.add_column(column, justify="right")
        for index, (seen, found) in enumerate(zip(layers, fit_layers(layers, decoder.spec, most_tokens), strict=True)):
            span = f"{seen.least_peak:.1f} to {seen.greatest_peak:.1f}"
            unified = found.unified
            if unified is None:
                table.add_row(str(index), span, "none: too far apart", "", "")
                continue
            bounds = unified.phi + unified.low, unified.phi + unified.high
            table.add_row(str(index), span, f"{unified.phi:.1f}", *(f"{bound:.1f}" for bound in bounds))
        console.print(table)
        file = CalibrationFile(
            checkpoint=checkpoint_key(path), n_prompts=len(ids), n_tokens=sum(map(len, ids)), layers=layers
        )
        write_calibration(path_of(path), file)
        console.print(f"written: {path_of(path)}; engines use it with --softmax unified")


def calibration_prompts(model: Path, text: Path | None, prompt_tokens: int) -> list[list[int]]:
    """Token ids of parts of a text, spread over it; without one, of modules of this Python's standard library."""
    from penstock.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_path(model)
    if text is None:
        modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        texts = [
            module.read_text(encoding="utf-8", errors="replace") for module in modules[:: len(modules) // N_PROMPTS]
        ]
    else:
        try:
            whole = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the prompts {text}: {error}; give a text file in UTF-8") from None
        step = max(1, len(whole) // N_PROMPTS)
        texts = [whole[at : at + step] for at in range(0, len(whole), step)]
    found = [tokenizer.encode(part, add_special_tokens=False)[:prompt_tokens] for part in texts[:N_PROMPTS]]
    return [ids for ids in found if ids]
