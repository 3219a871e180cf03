"""The common licences of checkpoints, and their restrictions.

A summary, not legal advice: the text behind the link is binding.
"""

from collections.abc import Mapping, Sequence

from safelight.models.registry.version import Licence

OPENRAIL = (
    "None of the uses in its attachment A: breaking the law, harming minors, harassing, deceiving, discriminating, ...",
    "Whoever passes the model or a derivative on passes these restrictions on.",
)
NON_COMMERCIAL = "No commercial use."
CREDIT = "Credit is given to the authors."

LICENCES: Mapping[str, Licence] = {
    licence.id: licence
    for licence in (
        Licence(
            id="creativeml-openrail-m",
            title="CreativeML Open RAIL-M (Stable Diffusion 1, 2)",
            url="https://huggingface.co/spaces/CompVis/stable-diffusion-license",
            restrictions=OPENRAIL,
        ),
        Licence(
            id="openrail++",
            title="CreativeML Open RAIL++-M (SDXL)",
            url="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
            restrictions=OPENRAIL,
        ),
        Licence(
            id="stabilityai-ai-community",
            title="Stability AI Community License (Stable Diffusion 3, 3.5)",
            url="https://stability.ai/community-license-agreement",
            restrictions=(
                "Commercial use needs registration, and an enterprise licence above 1 million US dollars of revenue a "
                "year.",
                "Products say that they are powered by Stability AI.",
                "Its acceptable use policy is kept.",
            ),
        ),
        Licence(
            id="flux-1-dev-non-commercial-license",
            title="FLUX.1 [dev] Non-Commercial License",
            url="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
            restrictions=("No commercial use of the model itself; the licence treats what it draws apart.",),
        ),
        Licence(id="apache-2.0", title="Apache License 2.0", url="https://www.apache.org/licenses/LICENSE-2.0"),
        Licence(id="mit", title="MIT License", url="https://opensource.org/license/mit"),
        Licence(id="cc0-1.0", title="CC0 1.0", url="https://creativecommons.org/publicdomain/zero/1.0/"),
        Licence(
            id="cc-by-4.0",
            title="CC BY 4.0",
            url="https://creativecommons.org/licenses/by/4.0/",
            restrictions=(CREDIT,),
        ),
        Licence(
            id="cc-by-nc-4.0",
            title="CC BY-NC 4.0",
            url="https://creativecommons.org/licenses/by-nc/4.0/",
            restrictions=(CREDIT, NON_COMMERCIAL),
        ),
    )
}


def licence_of(id_or_text: str, restrictions: Sequence[str] = (), url: str = "") -> Licence:
    """Return a common licence by its id, with the given restrictions added; any other text is a licence's own name."""
    known = LICENCES.get(id_or_text.lower()) or Licence(id=id_or_text)
    return known.model_copy(
        update={"restrictions": (*known.restrictions, *restrictions), **({"url": url} if url else {})}
    )
