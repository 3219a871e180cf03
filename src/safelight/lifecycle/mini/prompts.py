"""Write the fixed prompts of `safelight eval mini`, from the artwork's lists of concepts.

python -m safelight.lifecycle.mini.prompts --out RUN
"""

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

from safelight.lifecycle.mini.artwork import fraction_of
from safelight.lifecycle.mini.captions import names_of, read_aliases, without_colours

COLOUR_SUBJECTS = ("apple", "car", "heart", "star", "balloon", "house", "fish", "butterfly", "t-shirt", "umbrella")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
STYLE_SUBJECTS = 40


def prompt_sets(artwork: Path) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Sets of prompts, each with the right answers (words separated by spaces) by question."""
    aliases = read_aliases()
    entries: list[dict[str, Any]] = json.loads((artwork / "concepts.json").read_text("utf-8"))
    names = {e["slug"]: names_of(e["label"], aliases)[0] for e in entries if e["core"]}
    held = [key.split("/") for key in json.loads((artwork / "holdout.json").read_text("utf-8"))]
    chosen = sorted(names, key=fraction_of)[:STYLE_SUBJECTS]
    return {
        "concepts": [(name, {"concept": slug}) for slug, name in names.items()],
        "colours": [(f"{colour} {subject}", {"colour": colour}) for subject in COLOUR_SUBJECTS for colour in COLOURS],
        "styles": [
            (f"{names[slug]}, {style} style", {"style": style})
            for slug in chosen
            for style in ("noto", "flat", "glossy")
        ],
        "held_out": [
            (
                f"{'' if colour == 'own' else colour + ' '}{plain(names[slug], colour)}, {style} style",
                {"concept": slug, "style": style} | ({} if colour == "own" else {"colour": colour}),
            )
            for slug, style, colour in held
            if slug in names
        ],
        "phrases": [
            (
                line.partition(":")[0],
                {"concept": " ".join(slug.strip() for slug in line.partition(":")[2].split(","))},
            )
            for line in resources.files("safelight.lifecycle.evaluation")
            .joinpath("phrases.txt")
            .read_text("utf-8")
            .splitlines()
            if not line.startswith("#")
        ],
    }


def plain(name: str, colour: str) -> str:
    return name if colour == "own" else without_colours(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("mini-run"), help="folder of the run, which contains artwork/")
    sets = prompt_sets(parser.parse_args().out / "artwork")
    target = Path(str(resources.files("safelight.lifecycle.evaluation"))) / "prompts.json"
    lines = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(pair)}" for pair in pairs) + "\n ]"
        for name, pairs in sets.items()
    ]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print({name: len(pairs) for name, pairs in sets.items()})


if __name__ == "__main__":
    main()
