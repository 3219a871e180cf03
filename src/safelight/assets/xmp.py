"""XMP packets: writing our own elements, and reading single elements of any packet.

Reading uses a pattern, not an XML parser: only one element of an untrusted file is needed, and a pattern expands no
entities.
"""

import re
from collections.abc import Mapping
from html import escape, unescape

NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "safelight": "urn:safelight:metadata:1",
}


def packet(elements: Mapping[str, str]) -> str:
    """Make a packet with elements such as `{"safelight:record": "..."}`."""
    names = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items())
    body = "".join(f"<{name}>{escape(text, quote=False)}</{name}>" for name, text in elements.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{names}>{body}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def element(xmp: str, name: str) -> str | None:
    found = re.search(rf"<{re.escape(name)}>([^<]*)</{re.escape(name)}>", xmp)
    return None if found is None else unescape(found.group(1))
