"""The supervised start of the built-in world's planner: `flowward agent pretrain` makes flowward/agent/start/ anew.

The planner imitates a teacher that writes every plan well but plays badly (teacher.py). It is written only if it copies
words right and succeeds at every kind of question now and then: so there is something to reinforce.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..models import hub
from ..system import whole_files
from ..system.seeds import numpy_generator
from ..system.streams import generator
from . import world
from .episode import Episode, Observation, Use
from .language import Language
from .rollout import InProcess, Player
from .system import System, Text
from .teacher import Labelled, flawless, turns
from .tools import ToolError

PAD, END, UNKNOWN, USER, PLAN = "<pad>", "<end>", "<unknown>", "<user>", "<plan>"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    f"{PLAN} {{{{ message['content'] }}}} {END} "
    f"{{% else %}}{USER} {{{{ message['content'] }}}} {{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{PLAN}{{% endif %}}"
)
CONTEXT = 128  # most tokens of prompt and plan

BATCH = 32  # turns of a step
LEARNING_RATE = 3e-3
WARM = 50  # steps until the full learning rate
LAST = 0.1  # part of it that is left at the planned end, and after it
IGNORED = -100  # label of a token that is not learned

COPIED = 0.99  # least share of plans whose words are copied right
SOLVED = 0.05  # least share of sampled episodes of each stratum that succeed
QUESTIONS = 400  # held-out ones of a check
EVERY = 250  # steps between log lines, and between checks after the planned steps
MOST = 2  # times the planned steps: then it gives up


def tokenizer() -> Any:
    """Words to numbers: one token per word, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, END, UNKNOWN, USER, PLAN]
    known = {word: place for place, word in enumerate([*special, *world.vocabulary()])}
    words = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, PLAN],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made


def model(tokens: Any, seed: int) -> Any:
    """A Llama of 2 layers, width 64, with random weights. Tied embeddings never told the operators apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    made = LlamaForCausalLM(config)
    stream = generator("start weights", seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" not in name:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=stream))
    return made


def batch(tokens: Any, given: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
    """Token ids and labels [B, L], padded on the right; only the plan and its end have labels."""
    chats = [[{"role": role, "content": content} for role, content in turn.messages] for turn in given]
    prompts = tokens.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompt = tokens(prompts, add_special_tokens=False)["input_ids"]
    plan = tokens([f"{turn.plan} {END}" for turn in given], add_special_tokens=False)["input_ids"]
    longest = max(len(a) + len(b) for a, b in zip(prompt, plan, strict=True))
    ids = torch.full((len(given), longest), tokens.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for row, (a, b) in enumerate(zip(prompt, plan, strict=True)):
        ids[row, : len(a) + len(b)] = torch.tensor(a + b)
        labels[row, len(a) : len(a) + len(b)] = torch.tensor(b)
    return ids, labels


def rate(step: int, steps: int) -> float:
    """The learning rate of a step, as a part of the highest: a linear warm-up, then a cosine that ends at LAST."""
    done = min(1.0, step / steps)
    return min(1.0, (step + 1) / WARM) * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Played:
    """What came of some episodes."""

    solved: Mapping[str, float]  # share of each stratum that succeeded
    guessed: float  # share that used `guess`
    turns: float  # mean number

    @property
    def success(self) -> float:
        """Of equally many questions per stratum."""
        return sum(self.solved.values()) / len(self.solved)

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Played:
        known = world.asked(held_out=True)
        right: dict[str, list[bool]] = {name: [] for name in world.CATEGORIES.values()}
        for episode in episodes:
            asked = known[episode.question]
            right[asked.category].append(episode.answer == asked.answer)
        used = [{turn.plan.tool for turn in episode.turns if turn.plan} for episode in episodes]
        return cls(
            {name: sum(each) / len(each) for name, each in right.items()},
            sum(world.GUESS in tools for tools in used) / len(used),
            sum(len(episode.turns) for episode in episodes) / len(episodes),
        )


def play(language: Language, seed: int | None, count: int = QUESTIONS) -> Played:
    """Episodes of `count` held-out questions: sampled at temperature 1, or greedy if there is no seed."""
    given, most = world.held_out(), world.LIMITS.max_tokens
    agent = world.system(language.reader(most))

    def used(uses: Sequence[Use]) -> list[Observation]:
        return [_used(agent, use) for use in uses]

    questions = [given.texts[place] for place in given.spread(count)]
    keys = None if seed is None else [("start", seed, number) for number in range(count)]
    return Played.of(Player(agent, InProcess(language, 1.0, most), used).play(questions, keys=keys)[0])


def _used(agent: System, use: Use) -> Observation:
    try:
        return Observation(agent.tools[use.tool](**use.arguments))
    except ToolError as error:
        return Observation(str(error), failed=True)


def copied(language: Language, count: int = QUESTIONS) -> float:
    """The share of plans whose words are right, if the planner is greedy and begins with the right tool.

    The plans are those that answer `count` held-out questions.
    """
    given, known, agent = world.held_out(), world.asked(held_out=True), world.system(Text())
    prompts, wanted = [], []
    for text in (given.texts[place] for place in given.spread(count)):
        for messages, plan in flawless(text, known[text], agent):
            tool, *rest = language.tokenizer(f"{plan} {END}", add_special_tokens=False)["input_ids"]
            prompts.append([*language.encode(messages), tool])
            wanted.append(tuple(rest))
    said = language.sample("policy", prompts, None, 1.0, world.LIMITS.max_tokens)
    return sum(each.ids == rest for each, rest in zip(said, wanted, strict=True)) / len(wanted)


@dataclass(frozen=True)
class Check:
    """What a start must be able to do before it is written."""

    copied: float
    sampled: Played
    greedy: Played

    @classmethod
    def of(cls, network: Any, tokens: Any, seed: int) -> Check:
        language = Language("start", copy.deepcopy(network).eval(), tokens, ends=[tokens.eos_token_id])
        return cls(copied(language), play(language, seed), play(language, None))

    @property
    def missing(self) -> str:
        """What it cannot do yet; empty if nothing."""
        if self.copied < COPIED:
            return f"only {self.copied:.1%} of its plans are copied right, of {COPIED:.0%} needed"
        name = min(self.sampled.solved, key=lambda stratum: self.sampled.solved[stratum])
        if (least := self.sampled.solved[name]) < SOLVED:
            return f"only {least:.1%} of its sampled episodes of {name} succeed, of {SOLVED:.0%} needed"
        return ""

    def __str__(self) -> str:
        return (
            f"copied right {self.copied:.1%}, success sampled {self.sampled.success:.3f} and greedy "
            f"{self.greedy.success:.3f}, guess used in {self.sampled.guessed:.0%}, {self.sampled.turns:.2f} turns"
        )


def losses(network: Any, tokens: Any, seed: int, steps: int) -> Iterator[float]:
    """Train without end, by a schedule for `steps` steps; gives the loss of each step."""
    agent = world.system(Text())
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    for step in itertools.count():
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * rate(step, steps)
        ids, labels = batch(tokens, turns(numpy_generator("start turns", seed, step), BATCH, agent))
        loss = cross_entropy(network(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        yield loss.item()


def fit(network: Any, tokens: Any, seed: int, steps: int, say: Callable[[str], object]) -> tuple[Check, int]:
    """Train until the check is passed, `steps` steps or more; returns it and the number of steps.

    Raises:
        ValueError: it is not passed after twice as many.
    """
    missing = ""
    for done, loss in enumerate(itertools.islice(losses(network, tokens, seed, steps), MOST * steps), 1):
        if done % EVERY == 0:
            say(f"step {done} of {max(steps, done)}: loss {loss:.3f}")
        if done >= steps and (done - steps) % EVERY == 0:
            check = Check.of(network, tokens, seed)
            say(f"after {done} steps: {check}")
            if not (missing := check.missing):
                return check, done
    raise ValueError(f"the start is not good enough after {MOST * steps} steps: {missing}; use more --steps")


def pretrain(output: Path, seed: int = 0, steps: int = 1500, say: Callable[[str], object] = print) -> Check:
    """Make a start for the planner, and write it to the folder `output` for transformers.

    The same seed, versions and number of threads give the same bytes.

    Raises:
        ValueError: there is something in the folder already, or the start does not pass its check.
        OSError: it cannot be written.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"there is something at {output} already: choose another folder")
    started = time.process_time()
    hub.quiet()
    tokens = tokenizer()
    network = model(tokens, seed)
    check, done = fit(network, tokens, seed, steps, say)
    write(output, network, tokens, card(check, seed, done))
    say(f"wrote {output} ({time.process_time() - started:.0f} CPU seconds)")
    return check


def write(output: Path, network: Any, tokens: Any, about: str) -> None:
    """Write a model, its tokenizer and its card; the folder appears with all of them, or not at all."""
    with whole_files.new_folder(output) as partial:
        network.save_pretrained(partial)
        tokens.save_pretrained(partial)
        whole_files.write(partial / "README.md", about)


def card(check: Check, seed: int, steps: int) -> str:
    """The model card."""
    command = f"flowward agent pretrain --output FOLDER --seed {seed} --threads {torch.get_num_threads()}"
    lines = [
        f"| {name} | {solved:.3f} | {check.greedy.solved[name]:.3f} |" for name, solved in check.sampled.solved.items()
    ]
    lines.append(f"| all | {check.sampled.success:.3f} | {check.greedy.success:.3f} |")
    return CARD.format(
        command=command,
        steps=steps,
        batch=BATCH,
        table="\n".join(lines),
        questions=QUESTIONS,
        copied=check.copied,
        guessed=check.sampled.guessed,
        turns=check.sampled.turns,
        words=len(world.vocabulary()),
        facts=len(world.FACTS),
    )


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# world: the built-in planner of flowward's agents, before reinforcement learning

A language model for one small world: {facts} facts about towers, and questions about one or two of them. It knows the
language of plans (`search height arlo`, `calculator 7 - 4`, `guess`), but guesses far too often. `flowward agent train`
teaches it the right strategy.

**Model.** `LlamaForCausalLM` of transformers: 2 layers, width 64, 4 heads, embeddings not tied, 0.12 M parameters,
float32. The tokenizer has one token for each of {words} words, numbers from -10 to 144 among them. The chat template
marks the prompt, and where the plan begins.

**Training.** `{command}`: {steps} steps of {batch} turns
(AdamW, learning rate 3e-3). The turns are those of a teacher that writes every plan well but plays badly. In the first
turn it guesses 45 % of the time, and calculates or searches something wrong 20 %; in later turns it guesses 25 %, and
searches something wrong 10 %. Held-out questions are never among them.

**Success** on {questions} held-out questions: of episodes sampled at temperature 1, and of greedy ones.

| questions | sampled | greedy |
| --- | --- | --- |
{table}

{guessed:.0%} of the sampled episodes use `guess`; they have {turns:.2f} turns on average. If a greedy plan is given the
right tool, it goes on with the right words in {copied:.1%} of all cases.

**Limits.** It knows these words and nothing else. It is a laboratory animal.
"""
