"""XMP packets: writing our own elements, and reading single elements of any packet.

Reading uses a pattern, not an XML parser: only one element of an untrusted file is needed, and a pattern expands no
entities.
"""

import re
from collections.abc import Mapping
from html import escape, unescape

NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
    "safelight": "urn:safelight:metadata:1",
}
DIGITAL_SOURCE_TYPE = "Iptc4xmpExt:DigitalSourceType"
AI_SYSTEM = "Iptc4xmpExt:AISystemUsed"
AI_SYSTEM_VERSION = "Iptc4xmpExt:AISystemVersionUsed"
AI_PROMPT = "Iptc4xmpExt:AIPromptInformation"
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""
AIGC = "TC260:AIGC"
"""The implicit label of GB 45438-2025 (TC260-PG-20259A), a JSON object."""


def packet(elements: Mapping[str, str]) -> str:
    """Make a packet with elements such as `{"safelight:record": "..."}`; "" for none."""
    if not elements:
        return ""
    used = sorted({name.partition(":")[0] for name in elements})
    names = "".join(f' xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in used)
    body = "".join(f"<{name}>{written(text)}</{name}>" for name, text in elements.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{names}>{body}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def written(text: str) -> str:
    return escape(NOT_XML.sub("\ufffd", text), quote=False)


def element(xmp: str, name: str) -> str | None:
    """Return the text of an element, or of an attribute, which XMP takes for the same."""
    name = re.escape(name)
    found = re.search(rf"<{name}>([^<]*)</{name}>", xmp) or re.search(rf"\s{name}=(?:\"([^\"<]*)\"|'([^'<]*)')", xmp)
    return None if found is None else unescape(next(group for group in found.groups() if group is not None))
