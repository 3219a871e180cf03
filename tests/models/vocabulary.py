"""A CLIP vocabulary of a few words, written to disk in every layout that checkpoints come in."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    "a photo of the red apple cat cats dog astronaut riding horse don t s ll masterpiece best quality café 猫".split()
)


def write_vocabulary(folder: Path) -> Path:
    """`vocab.json` and `merges.txt`: every byte, and the letters of WORDS joined from the left."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        ((spelt, _),) = ByteLevel(add_prefix_space=False).pre_tokenize_str(word)
        parts = [*spelt[:-1], spelt[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts[:2] = [parts[0] + parts[1]]
    tokens += [first + second for first, second in merges] + [BEGIN, END]
    numbered = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def flags(content: str, *, normalized: bool = True) -> dict[str, object]:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


def sd1(folder: Path, *, pad: str = END, max_length: int = 77) -> Path:
    """As Stable Diffusion 1.x and the first SDXL encoder ship it (transformers 4.21)."""
    write_vocabulary(folder)
    names = {"bos_token": BEGIN, "eos_token": END, "unk_token": END}
    write_json(folder / "special_tokens_map.json", {k: flags(v) for k, v in names.items()} | {"pad_token": pad})
    typed = {name: {"__type": "AddedToken"} | flags(token) for name, token in names.items()}
    config = {"model_max_length": max_length, "pad_token": END, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", typed | config)
    return folder


def sd2(folder: Path) -> Path:
    """Stable Diffusion 2.x and the second SDXL encoder pad with "!", which is also a word of every prompt."""
    return sd1(folder, pad="!")


def with_decoder(folder: Path) -> Path:
    """As transformers 4.34 and later write it, with a token added for a textual inversion."""
    write_vocabulary(folder)
    numbers = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    listed = {str(numbers[token]): flags(token) | {"special": True} for token in (BEGIN, END)}
    listed["0"] = flags("!", normalized=False) | {"special": True}
    listed[str(len(numbers))] = flags("<my-cat>") | {"special": False}
    names = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": "!"}
    config = {"added_tokens_decoder": listed, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", names | config)
    return folder


def with_added_tokens(folder: Path) -> Path:
    """As before 4.34, with a token added."""
    sd1(folder)
    number = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    write_json(folder / "added_tokens.json", {"<my-cat>": number})
    return folder


def bare(folder: Path) -> Path:
    """Two files and nothing said."""
    return write_vocabulary(folder)


def transformers5(folder: Path) -> Path:
    """One `tokenizer.json`, written after a padded call, which leaves padding and truncation in the file."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(sd2(folder / "old"))
    tokenizer("a", padding="max_length", truncation=True, max_length=77)
    tokenizer.save_pretrained(folder)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "sd1": sd1,
    "sd2": sd2,
    "with_decoder": with_decoder,
    "with_added_tokens": with_added_tokens,
    "bare": bare,
    "transformers5": transformers5,
}
