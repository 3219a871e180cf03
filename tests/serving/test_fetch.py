"""URLs in requests lead nowhere private."""

import base64
import ipaddress

import httpx
import pytest

from safelight.errors import InvalidImage
from safelight.public_http import is_public
from safelight.serving.http.fetch import fetch_picture

SPECIAL = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/29 192.0.0.8/32
    192.0.0.170/31 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
    224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
    ::/128 ::1/128 ::/96 ::7f00:0/104 ::ffff:0:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64
    2001::/32 2001:2::/48 2001:10::/28 2001:20::/28 2001:db8::/32 2002::/16 3fff::/20 5f00::/16
    fc00::/7 fe80::/10 fec0::/10 ff00::/8
    """.split()
"""IANA's registries of special addresses (RFC 6890) as far as they are not routed to anybody, multicast, and the forms
in which IPv6 once held IPv4: compatible, translated, 6to4, Teredo."""


@pytest.mark.parametrize("network", [*map(ipaddress.ip_network, SPECIAL)], ids=str)
def test_no_address_of_a_special_range_is_public(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    middle = network.network_address + network.num_addresses // 2
    for address in (network.network_address, middle, network.broadcast_address):
        assert not is_public(str(address))
        if isinstance(address, ipaddress.IPv4Address):
            # The same in IPv6's dress: mapped, compatible, translated, by NAT64 (its own prefix and a local one), 6to4.
            number = int(address)
            for dress in ("::ffff:0:0", "::", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"):
                assert not is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(dress)) + number))), dress
            assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80))))
        else:
            assert not is_public(f"{address}%eth0")


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450::1", "::ffff:93.184.216.34",
     "64:ff9b::5db8:d822"],
)  # fmt: skip
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "http://localhost:80/", "http://[::1]/", "http://2130706433/"]
)
async def test_private_urls_are_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InvalidImage, match="private network"):
        await fetch_picture(url, max_bytes=1000)


@pytest.mark.anyio
async def test_base64_and_data_urls_are_read() -> None:
    encoded = base64.b64encode(b"bytes").decode()
    assert await fetch_picture(encoded, max_bytes=1000) == b"bytes"
    assert await fetch_picture(f"data:image/png;base64,{encoded}", max_bytes=1000) == b"bytes"
    with pytest.raises(InvalidImage, match="larger than 3 bytes"):
        await fetch_picture(encoded, max_bytes=3)
    with pytest.raises(InvalidImage, match="neither"):
        await fetch_picture("!!", max_bytes=1000)


@pytest.mark.anyio
@pytest.mark.parametrize("lines", [base64.encodebytes(bytes(200)).decode(), "  AAAA\r\n\tAA==\n", "\nAAAAAA=="])
async def test_base64_may_hold_white_space(lines: str) -> None:
    plain = base64.b64decode(lines)
    for source in (lines, f"data:image/png;base64,{lines}", f" data:;base64,{lines}"):
        assert await fetch_picture(source, max_bytes=len(plain)) == plain
        with pytest.raises(InvalidImage, match="larger than"):
            await fetch_picture(source, max_bytes=len(plain) - 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url",
    [
        "http://", "http:///x", "http://[::1", "http://]/", "http://[v1.a]/", "http://a..b/", "http://.", "http://a:b/",
        "http://93.184.216.34:99999/", "http://%00/", "http://a%00b/", "http://a b/", f"http://{'a' * 64}.com/",
        f"http://{'a.' * 300}/", "http://xn--/", "http://xn--a/", "http://\u2603/", "http://exa\u00admple/", "http://\\/",
        "http://256.256.256.256/", "http://[fe80::1%25eth0]/", "http://\x7f/", "http://@", "http://:80", "https://?",
    ],
)  # fmt: skip
async def test_an_invalid_host_is_an_invalid_image(url: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        await fetch_picture(url, max_bytes=1000)
    assert len(str(caught.value)) < 1000


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "location"), [(302, None), (304, None), (302, "http://["), (302, "http://xn--/"), (302, "file:///etc")]
)
async def test_an_invalid_redirect_is_an_invalid_image(
    monkeypatch: pytest.MonkeyPatch, status: int, location: str | None
) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={} if location is None else {"location": location})

    def client(**_how: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=False)

    monkeypatch.setattr("safelight.serving.http.fetch.public_client", client)
    with pytest.raises(InvalidImage):
        await fetch_picture("http://pictures.example/x.png", max_bytes=1000)
