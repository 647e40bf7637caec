"""How much of a prompt the text encoders of a model read: which prompts are cut, and which become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..prompts import Prompt, sources_of, text_of

AT_ONCE = 1000  # prompts
SHOWN = 70  # characters of a prompt in a message; of a longer one its begin and its end


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and how many tokens the text encoder gets.

    Args:
        name: of the text encoder, for messages.
        tokens: maximum per prompt, with the marks that the tokenizer adds.
        form: the text as the tokenizer gets it.
        before: tokens of an instruction before the prompt, which are not counted.
        more: whether --text-tokens can be raised.
        sliced: whether the model cuts the tokens itself; a tokenizer that cuts keeps its mark of the end.
    """

    name: str
    tokenizer: Any
    tokens: int
    form: Callable[[str], str] = str
    before: int = 0
    more: bool = False
    sliced: bool = False

    def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """(tokens of each text, numbers of the texts that are cut)."""
        formed, most = [self.form(text) for text in texts], self.tokens + self.before
        ids: list[list[int]] = self.tokenizer(formed, verbose=False)["input_ids"]
        cut = [number for number, each in enumerate(ids) if len(each) > most]
        if self.sliced:
            return [each[:most] for each in ids], cut
        if cut:
            short = self.tokenizer([formed[number] for number in cut], truncation=True, max_length=most)["input_ids"]
            for number, each in zip(cut, short, strict=True):
                ids[number] = each
        return ids, cut


def chat(tokenizer: Any, **options: Any) -> Callable[[str], str]:
    """A function that writes a text as the user's message of a chat, up to the begin of the answer."""

    def form(text: str) -> str:
        message = [{"role": "user", "content": text}]
        whole: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **options)
        return whole

    return form


@dataclass
class _Found:
    cut: list[Prompt] = field(default_factory=list)
    longer: Counter[tuple[str, int]] = field(default_factory=Counter)  # prompts by encoder and its maximum
    more: bool = False
    same: list[tuple[Prompt, Prompt]] = field(default_factory=list)


def remarks(readers: Sequence[Reader], prompts: Sequence[Prompt]) -> list[str]:
    """A sentence if prompts are cut, and one if the model cannot tell prompts apart; usually none."""
    distinct, first, found = list(dict.fromkeys(prompts)), dict[int, Prompt](), _Found()
    for start in range(0, len(distinct) if readers else 0, AT_ONCE):
        _read(readers, distinct[start : start + AT_ONCE], first, found)
    said = []
    if found.cut:
        lengths = [
            f"{name} reads {tokens} tokens ({_prompts(many)} longer)" for (name, tokens), many in found.longer.items()
        ]
        said.append(
            f"{len(found.cut)} of {len(distinct)} prompts are longer than the model reads, so their ends are cut: "
            f"{', '.join(lengths)}. The first one is '{_short(found.cut[0])}'; shorten them"
            + (", or raise --text-tokens" if found.more else "")
        )
    if found.same:
        one, other = found.same[0]
        said.append(
            f"{_prompts(len(found.same))} read like another one, so the model cannot tell them apart: "
            f"'{_short(one)}' and '{_short(other)}'; change or remove one of them"
        )
    return said


def _read(readers: Sequence[Reader], part: Sequence[Prompt], first: dict[int, Prompt], found: _Found) -> None:
    """Add what happens to a part of the prompts; `first` has the first prompt with certain tokens, by their hash."""
    texts = [text_of(prompt) for prompt in part]
    read = [reader(texts) for reader in readers]
    longer: dict[tuple[str, int], set[int]] = {}
    for reader, (_, cut) in zip(readers, read, strict=True):
        longer.setdefault((reader.name, reader.tokens), set()).update(cut)
        found.more |= bool(cut) and reader.more
    found.longer.update({key: len(cut) for key, cut in longer.items() if cut})
    found.cut += [part[number] for number in sorted(set().union(*longer.values()))]
    for number, prompt in enumerate(part):
        key = hash((sources_of(prompt), *(tuple(ids[number]) for ids, _ in read)))
        if (earlier := first.setdefault(key, prompt)) != prompt:
            found.same.append((earlier, prompt))


def _prompts(many: int) -> str:
    return "1 prompt is" if many == 1 else f"{many} prompts are"


def _short(prompt: Prompt) -> str:
    text = text_of(prompt)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
