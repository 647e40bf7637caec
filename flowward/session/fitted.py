"""A trained model with the record of its run: what flowward.fit returns."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

from PIL import Image
from torch import Tensor

from ..evaluation import images
from ..evaluation.evaluate import Evaluator, draw, measure
from ..evaluation.measurement import Measurement
from ..evaluation.outcome import counted
from ..models.lora import LoRA
from ..pages import report
from ..process.policy import Policy
from ..process.rollout import Sampler
from ..prompts import Prompt, text_of
from ..system.paths import refuse_filled
from ..training.folder import RunFolder
from ..training.trainer import Trainer
from . import measuring, notebook
from .arguments import LISTED
from .scores import Scores

Weights = Literal["policy", "ema"]
PROMPTS = "prompts.jsonl"  # in a run folder: prompts that were given as a list


class Fitted:
    """A trained model with the record of its run.

    Without an output folder, metrics and sample grids are in a temporary folder, which is deleted together with this
    object. The weights are in memory; `save` and `export` write them.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        evaluator: Evaluator,
        config: dict[str, Any],
        loaded: bool,
        temporary: TemporaryDirectory[str] | None = None,
    ):
        """`loaded`: nobody else uses the policy. `temporary`: what deletes the folder when nobody needs it."""
        self._trainer, self._folder, self._usual, self._config = trainer, folder, evaluator, config
        self._loaded, self._temporary = loaded, temporary
        self._before = _copied(trainer.policy.weights.tensors("policy"))

    @property
    def policy(self) -> Policy:
        """The trained model; it can be trained on, by another call of `fit`."""
        return self._trainer.policy

    @property
    def folder(self) -> Path:
        """The run folder, or the temporary one."""
        return self._folder.path

    @property
    def iterations(self) -> int:
        """Finished iterations."""
        return self._trainer.iteration

    @property
    def stopped(self) -> bool:
        """Whether the run was interrupted before its last iteration."""
        return self.iterations < self._trainer.run.iterations

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of every iteration, one flat mapping each (docs/metrics.md); `seconds` is its total time."""
        lines = [line for line in self._folder.lines() if line["iteration"] > 0]
        return [{**_numbers(line), "seconds": line["seconds"]["total"]} for line in lines]

    @property
    def evaluations(self) -> dict[int, dict[str, Any]]:
        """The result of each evaluation during training, by iteration; 0 is before training."""
        return {line["iteration"]: line["evaluation"] for line in self._folder.lines() if line.get("evaluation")}

    def to_pandas(self) -> Any:
        """The metrics as a pandas DataFrame, with a row per iteration.

        Raises:
            ValueError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ValueError("to_pandas needs pandas: pip install pandas; .metrics has the same numbers") from error
        return pandas.DataFrame(self.metrics)

    def evaluate(
        self,
        prompts: Any = None,
        rewards: Any = None,
        *,
        base: bool = True,
        weights: Weights = "policy",
        **settings: Any,
    ) -> Scores:
        """Measure the trained weights, and the weights before training with the same prompts and noise.

        Args:
            prompts: as for `fit`; None: those of the evaluations during training.
            rewards: as `reward` of `fit`; None: those of the evaluations during training.
            base: also measure the weights before training, which takes the same time again.
            weights: the trained `policy`, or its `ema` average.
            settings: others of flowward.evaluation.evaluate.Evaluation, such as images=600 or seed=7.

        Raises:
            ValueError: a setting, prompt or reward is not known, or the model or a reward does not accept a prompt.
            RewardError: a reward failed.
        """
        chosen = measuring.asked(self._usual, prompts, rewards, **settings)
        chosen.refuse()
        self._prepare(list(chosen.prompts))
        after = self._measured(chosen, weights, "after")
        if not base:
            return Scores(self.iterations, after, None)
        with self._holding(self._before):
            before = self._measured(chosen, "policy", "before")
        return Scores(self.iterations, after, before)

    def _measured(self, how: Evaluator, weights: Weights, name: str) -> Measurement:
        found = measure(self.policy, how.prompts, replace(how.evaluation, weights=weights), how.rewards)
        about = {**found.settings["model"], "name": name}
        return replace(found, name=name, settings={**found.settings, "model": about})

    @overload
    def sample(
        self, prompts: Prompt | Sequence[Prompt], count: int = 4, seed: int = 0, *, tensor: Literal[False] = False,
        weights: Weights = "policy", sampler: Sampler | None = None,
    ) -> list[Image.Image]: ...  # fmt: skip
    @overload
    def sample(
        self, prompts: Prompt | Sequence[Prompt], count: int = 4, seed: int = 0, *, tensor: Literal[True],
        weights: Weights = "policy", sampler: Sampler | None = None,
    ) -> Tensor: ...  # fmt: skip
    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        count: int = 4,
        seed: int = 0,
        *,
        tensor: bool = False,
        weights: Weights = "policy",
        sampler: Sampler | None = None,
    ) -> list[Image.Image] | Tensor:
        """Sample `count` images of each prompt: a list of PIL images, those of the first prompt first.

        A PIL image of a video shows its first, middle and last frame; one of a sample that is no image is its plot.

        Args:
            seed: the same seed gives the same images, as `flowward sample` does.
            tensor: return a tensor instead, float [N, 3, H, W] in [0, 1] (videos: [N, F, 3, H, W]; others: [N, ...]).
            weights: the trained `policy`, or its `ema` average.
            sampler: steps, solver and guidance (None: those of the evaluations).

        Raises:
            ValueError: there is no prompt, or the model does not accept one.
        """
        given = [prompts] if isinstance(prompts, Prompt) else [*prompts]
        if count < 1 or not given:
            raise ValueError("name at least one prompt, and sample at least one image of it")
        self.policy.refuse(given)
        self._prepare(given)
        asked = [prompt for prompt in given for _ in range(count)]
        how = sampler or self._usual.evaluation.sampler
        drawn = draw(self.policy, asked, how, seed, weights)
        if tensor:
            return drawn
        return images.pictures(self.policy.medium.draw(drawn, [text_of(prompt) for prompt in asked]))

    def save(self, folder: str | Path) -> Path:
        """Write a run folder with a checkpoint, for `flowward train --resume` and `flowward sample`. Returns its path.

        Raises:
            ValueError: the folder is not empty.
            OSError: it cannot be written.
        """
        path = Path(folder)
        if path.exists() and path.resolve() == self.folder.resolve():  # which has the checkpoint already
            return path
        config = {**self._config, "run": {**self._config["run"], "output": str(path)}}
        made = RunFolder.create(path, with_prompts(config, path) if (self.folder / PROMPTS).is_file() else config)
        with made.held():
            for name in ("metrics.jsonl", "summary.json", PROMPTS):
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, path / name)
            for grid in self._folder.samples():
                shutil.copyfile(grid, path / "samples" / grid.name)
            made.save(self.iterations, self._trainer.state_dict())
        return path

    def export(self, folder: str | Path, merged: bool = False, weights: Weights = "policy") -> list[Path]:
        """Write the weights for diffusers, with a model card, as `flowward export` does. Returns the files.

        Args:
            merged: write the whole transformer too, with LoRA merged into it. This loads the model once more.
            weights: the trained `policy`, or its `ema` average.

        Raises:
            ValueError: the folder is not empty.
            OSError: it cannot be written.
        """
        from ..export import trained, writing  # here: they wait for diffusers

        path = Path(folder)
        refuse_filled(path)
        if merged and isinstance(self.policy.weights, LoRA):  # merging ends the training of a model
            with TemporaryDirectory() as place:
                policy = trained.load(self.save(Path(place) / "run"), weights)
                return writing.write(self._folder, policy, path, weights, merged)
        with self._holding(_copied(self.policy.weights.tensors(weights))):
            return writing.write(self._folder, self.policy, path, weights, merged)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report of the run: to `path`, or as report.html into its folder. Returns the path.

        Raises:
            OSError: it cannot be written.
        """
        page = report.write(self.folder)
        if path is None:
            return page
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(page, path))

    @contextmanager
    def _holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Inside, these are the weights of the policy."""
        weights = self.policy.weights
        now = _copied(weights.tensors("policy"))
        weights.load("policy", values)
        try:
            yield
        finally:
            weights.load("policy", now)

    def _prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encode prompts, and free the text encoders again, of a model that nobody else uses."""
        if self._loaded:
            self.policy.prepare(prompts)

    def __repr__(self) -> str:
        kept = "in memory" if self._temporary else str(self.folder)
        return f"<Fitted: {self._state}, {kept}>"

    @property
    def _state(self) -> str:
        name, how = self.policy.name, type(self._trainer.algorithm).__name__
        done = counted(self.iterations, "iteration")
        return f"{name}, {how}, {'stopped' if self.stopped else 'finished'} after {done}"

    def _repr_html_(self) -> str:
        return notebook.summary(self._folder, self._state)


def with_prompts(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a run whose prompts are in a file of its folder, also those that it is measured on."""
    file, how = str((folder / PROMPTS).absolute()), config["evaluation"]
    return {**config, "prompts": file, "evaluation": {**how, "prompts": file} if _is_own(how["prompts"]) else how}


def _is_own(prompts: str) -> bool:
    """Whether this is the name of prompts from a list, or of the file that they are in."""
    return prompts == LISTED or Path(prompts).name == PROMPTS


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors in the memory of the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float)}
