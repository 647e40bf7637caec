"""Tiny chat models with random weights: a word-level tokenizer, a chat template, Llama or Qwen 3."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flowward.agent.language import Language

WORDS = ["<pad>", "<end>", "<user>", "<go>", "Goal", ":", "Input", "Tool", *"abcdefghijklm"]
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<go>{% endif %}"


def tokenizer(words: Sequence[str] = WORDS, template: str | None = TEMPLATE) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")
    found.chat_template = template
    return found


def network(kind: str = "llama", seed: int = 0, words: int = len(WORDS), context: int = 256) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    size: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.3,  # far from uniform
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(**size)).eval()
        return Qwen3ForCausalLM(Qwen3Config(**size, head_dim=8)).eval()


def language(kind: str = "llama", adapters: int | None = None, **size: Any) -> Language:
    return Language(f"tiny {kind}", network(kind, **size), tokenizer(), adapters, "float32", 0, (1,))


def folder(path: Path, kind: str = "llama", template: str | None = TEMPLATE, context: int = 256) -> Path:
    """A folder as transformers writes it."""
    network(kind, context=context).save_pretrained(path)
    tokenizer(template=template).save_pretrained(path)
    return path
