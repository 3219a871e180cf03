"""URLs in requests lead nowhere private."""

import base64

import pytest

from safelight.errors import InvalidImage
from safelight.public_http import is_public
from safelight.serving.http.fetch import fetch_picture


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "100.64.0.1",
        "::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses_are(address: str) -> None:
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
