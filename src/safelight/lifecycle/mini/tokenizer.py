"""Train the tokenizer: a small byte-level BPE in CLIP's file layout, from the words of the captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

from safelight.lifecycle.mini.mini import TextRecipe

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], recipe: TextRecipe, folder: Path) -> None:
    """Learn merges from `texts` and write vocab.json, merges.txt and the configuration into `folder`."""
    reference = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    # CLIP's own normaliser and pre-tokeniser, so that training and use split words in the same way.
    learner.normalizer, learner.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - 2, min_frequency=2, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learnt: list[list[str]] = [list(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

    symbols = sorted(byte_symbols())
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges = learnt[: recipe.vocabulary - len(vocabulary) - 2]
    vocabulary += dict.fromkeys("".join(pair) for pair in merges)
    # Unused tokens fill the vocabulary to its size if the texts yield too few merges.
    vocabulary += [f"<|unused{index}|>" for index in range(recipe.vocabulary - len(vocabulary) - 2)]
    vocabulary += [START, END]

    folder.mkdir(parents=True, exist_ok=True)
    table = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n", "utf-8"
    )
    configuration = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": recipe.max_length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "errors": "replace",
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n", "utf-8")
    special = {name: configuration[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", "utf-8")


def byte_symbols() -> list[str]:
    """The printable stand-ins for the 256 byte values, as GPT-2 and CLIP write them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = range(256 - len(printable))
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in others]


def tokenizer_texts(names: Iterable[str], keywords: Iterable[str]) -> list[str]:
    """The texts from which the merges are learnt: names weigh most, so that each of their words becomes one token."""
    return [*names] * 3 + [*keywords]
