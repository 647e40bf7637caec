"""The model card of exported weights: metadata, usage, training settings, scores, reward curve and sample images."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..evaluation import outcome
from ..evaluation.outcome import Measure
from ..models import is_pipeline
from ..process.policy import Loader, Policy
from ..system.whole_files import write as write_whole
from ..training.record import Record
from . import metadata
from .markdown import code, paragraph, table, text
from .weights import files_of

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 56, 28  # size of a curve and its margins, in pixels


def write(
    run: Record, folder: Path, policy: Policy, about: Mapping[str, Any], files: Sequence[str], command: str = ""
) -> Path:
    """Write README.md and its images next to the exported weights in `folder`; `files` are the weight files."""
    lines = [line for line in run.lines() if line["iteration"] <= about.get("iterations", line["iteration"])]
    evaluations = outcome.of(lines)
    parts = [
        f"# {text(metadata.title(about))}\n",
        paragraph(outcome.sentence(evaluations)),
        *(paragraph(f"{line[:1].upper()}{line[1:]}.") for line in [*outcome.remarks(lines), *run.changed_inputs()]),
        _use(folder, policy, about, files),
        "## Training\n",
        table(["setting", "value"], [[name.replace("_", " "), _plain(value)] for name, value in about.items()]),
    ]
    if evaluations:
        parts += ["## Evaluation\n", *(_scores(measure) for measure in Measure.every(evaluations))]
        parts.append(
            "Brackets are 95 % confidence intervals over the initial noise. "
            f"Evaluation settings: {text(outcome.settings(evaluations[-1][1]))}.\n"
        )
    if rewards := [(line["iteration"], line["reward"]) for line in lines if line.get("reward") is not None]:
        write_whole(folder / "reward.svg", curve(rewards, "training reward"))
        parts.append("![training reward over iterations](reward.svg)\n")
    parts += _pictures(run, folder, lines[-1]["iteration"] if lines else 0)
    if command:
        parts.append(f"## Reproduce\n\n{code(command)}")
    head = metadata.of(about, policy, evaluations).to_yaml()
    card = folder / "README.md"
    write_whole(card, str(ModelCard(f"---\n{head}\n---\n\n" + "\n".join(parts))))
    return card


def _use(folder: Path, policy: Policy, about: Mapping[str, Any], files: Sequence[str]) -> str:
    told = "steps" in about and "guidance" in about  # a user's own algorithm may lack these settings
    palette = policy.weights.palette
    if not is_pipeline(about["base_model"]):  # flowward's built-in model, which diffusers cannot load
        steps, guidance = (shlex.quote(str(about.get(name))) for name in ("steps", "guidance"))
        mixed = "".join(f" {shlex.quote(f'{name}={1 / len(palette):.3g}')}" for name in palette)
        how = f" --mixture{mixed}" if palette else ""
        how += f" --steps {steps} --guidance {guidance}  # as in training" if told else ""
        return code(f'flowward sample this/folder "PROMPT"{how}', "sh")
    call = ""
    if told:
        given = {"num_inference_steps": about["steps"], **policy.arguments(about["guidance"])}
        how = ", ".join(f"{name}={value!r}" for name, value in given.items())
        call = f"pipe({policy.inputs}, {how})  # the sampler settings of training\n"
    half = about.get("precision") == "bf16"  # diffusers loads float32 unless it is told
    first, more = ("import torch\n", ", dtype=torch.bfloat16") if half else ("", "")
    loading = {
        "pytorch_lora_weights.safetensors": "\n".join(
            [*policy.lora_first, _loading(policy.lora_loader, "this/folder")]
        ),
        "transformer": f'pipe.transformer = type(pipe.transformer).from_pretrained("this/folder/transformer"{more})',
    }
    chosen = _mixed(folder, palette, policy) if palette else "\n".join(loading[name] for name in files[:1])
    if (folder / "transformer_2").is_dir() and not palette:  # a pipeline of two
        again = {
            "pytorch_lora_weights.safetensors": (
                'pipe.load_lora_weights("this/folder/transformer_2", load_into_transformer_2=True)'
            ),
            "transformer": (
                f'pipe.transformer_2 = type(pipe.transformer_2).from_pretrained("this/folder/transformer_2"{more})'
            ),
        }
        chosen += "\n" + again[files[0]]
    which = "".join(f", {name}={_quoted(about[name])}" for name in ("revision", "variant") if name in about)
    loaded = f"DiffusionPipeline.from_pretrained({_quoted(about['base_model'])}{which}{more})"
    lines = f"{first}from diffusers import DiffusionPipeline\n\npipe = {loaded}\n{chosen}\n{call}"
    return code(lines.rstrip("\n"), "python")


def _loading(loader: Loader, place: str, more: str = "") -> str:
    """Code that loads a LoRA from a folder."""
    name, options = loader
    return f'pipe.{name}("{place}"{more}{"".join(f", {key}={value!r}" for key, value in options.items())})'


def _mixed(folder: Path, palette: Sequence[str], policy: Policy) -> str:
    """Code that loads the adapters of a palette and mixes them evenly."""
    loader = policy.lora_loader
    files = files_of(palette)
    stems = [Path(file).stem for file in files.values()]
    both = ["", ", load_into_transformer_2=True"] if (folder / "transformer_2").is_dir() else [""]
    where = ["this/folder", "this/folder/transformer_2"]
    lines = [
        _loading(loader, place, f', weight_name="{stem}.safetensors", adapter_name="{stem}"{more}')
        for place, more in zip(where, both, strict=False)
        for stem in stems
    ]
    even = ", ".join(f"{1 / len(stems):.3g}" for _ in stems)
    weights = f"[{even}]"
    names = ", ".join(f'"{stem}"' for stem in stems)
    said = f"# any weights that sum to 1; in training 1 and 0 were a single reward: {', '.join(palette)}"
    return "\n".join(
        [
            *policy.lora_first,
            *lines,
            f"{'.'.join(['pipe', *loader[0].split('.')[:-1]])}.set_adapters([{names}], {weights})  {said}",
        ]
    )


def _quoted(value: Any) -> str:
    """As a string in Python code."""
    return json.dumps(str(value), ensure_ascii=False)


def _scores(measure: Measure) -> str:
    rows = [measure.row("overall", measure.overall)]
    rows += [measure.row(name, scores) for name, scores in measure.categories.items()]
    several = len(measure.overall) > 1
    head = [measure.label, "before", *(["after", "change", "intervals overlap"] if several else []), "images"]
    return table(head, rows)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _pictures(run: Record, folder: Path, last: int) -> list[str]:
    """The first and the last sample grid, up to an iteration."""
    grids = [path for path in run.samples() if int(path.stem) <= last]
    named = {"before.png": grids[:1], "after.png": grids[1:][-1:]}
    found = []
    for name, grid in named.items():
        for path in grid:
            shutil.copyfile(path, folder / name)
            found.append(f"![samples {name.removesuffix('.png')} training, same prompts and noise]({name})\n")
    return found


def curve(points: Sequence[tuple[float, float]], title: str) -> str:
    """A line chart as SVG, with the end values of both axes."""
    xs, ys = zip(*points, strict=True)
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 8) * (x - left) / ((right - left) or 1)
        down = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 24) * (y - low) / ((high - low) or 1)
        return f"{across:.1f},{down:.1f}"

    line = " ".join(place(x, y) for x, y in points)
    style = "font-family='sans-serif' font-size='12' fill='#656b74'"
    labels = [
        (LEFT, 14, "start", title),
        (LEFT - 6, HEIGHT - BOTTOM, "end", f"{low:.3g}"),
        (LEFT - 6, 28, "end", f"{high:.3g}"),
        (LEFT, HEIGHT - 8, "start", f"iteration {left:g}"),
        (WIDTH - 8, HEIGHT - 8, "end", f"{right:g}"),
    ]
    texts = "".join(f"<text x='{x}' y='{y}' text-anchor='{end}' {style}>{said}</text>" for x, y, end, said in labels)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'>"
        f"<polyline points='{line}' fill='none' stroke='#2f6fbb' stroke-width='2'/>{texts}</svg>\n"
    )
