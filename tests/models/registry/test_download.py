"""Models by URL, from a server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.models.registry.file_server import Site, serve
from tests.models.registry.files import write_lora

from safelight.errors import CorruptModel, InvalidRequest, SafelightError, TooLarge, UnsafeFile
from safelight.models.checkpoints.digest import file_sum
from safelight.models.registry import download as module
from safelight.models.registry.download import DownloadFailed
from safelight.models.registry.registry import Registry


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One database is enough here."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "there.safetensors", width=2048)


@pytest.fixture
def site(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "PAUSES_S", (0.0, 0.0))
    with serve(Site(file.read_bytes())) as site:
        yield site


def remains(registry: Registry) -> list[str]:
    """Under SAFELIGHT_HOME/versions, but for locks: whole versions, and what may be gone on with."""
    return sorted(path.name.partition("-")[0] for path in registry.storage.folder.iterdir() if "lock" not in path.name)


def test_a_url_becomes_a_version_and_its_secrets_are_not_recorded(registry: Registry, site: Site, file: Path) -> None:
    version = registry.add(f"{site.url}?token=secret", private=True, sha256=file_sum(file))
    assert (version.reference, version.digest, version.source) == ("ink-v2@1", file_sum(file), site.url)
    assert remains(registry) == [version.digest]


def test_an_interrupted_download_resumes_where_it_ended(registry: Registry, site: Site, file: Path) -> None:
    site.cut_after = [1000, 500]
    assert registry.add(site.url, private=True).digest == file_sum(file)
    assert site.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_the_next_command_resumes_an_interrupted_download(registry: Registry, site: Site, file: Path) -> None:
    site.cut_after = [1000, 100, 100]
    with pytest.raises(DownloadFailed, match=r"interrupted after 1,200 bytes .* run the same command again"):
        registry.add(site.url, private=True)
    assert registry.versions() == []
    assert registry.add(site.url, private=True).digest == file_sum(file)
    assert site.ranges[-1] == "bytes=1200-"


def test_a_file_that_changed_on_the_server_is_downloaded_from_the_start(
    registry: Registry, site: Site, tmp_path: Path
) -> None:
    site.cut_after = [1000, 0, 0]
    with pytest.raises(DownloadFailed):
        registry.add(site.url, private=True)
    other = write_lora(tmp_path / "other.safetensors", seed=2)
    site.data, site.etag = other.read_bytes(), '"two"'
    assert registry.add(site.url, private=True).digest == file_sum(other)


def test_a_file_shorter_than_its_content_length_is_refused(registry: Registry, site: Site) -> None:
    site.declared = len(site.data) + 100
    with pytest.raises(DownloadFailed):
        registry.add(site.url, private=True)
    assert registry.versions() == []


def test_a_file_shorter_than_its_safetensors_header_is_refused(registry: Registry, site: Site) -> None:
    site.data = site.data[:-10]
    with pytest.raises(CorruptModel, match="is cut off"):
        registry.add(site.url, private=True)
    assert (registry.versions(), remains(registry)) == ([], [])


def test_a_wrong_sha256_is_refused_and_no_file_stays(registry: Registry, site: Site) -> None:
    with pytest.raises(InvalidRequest, match="this is not the file you mean"):
        registry.add(site.url, private=True, sha256="0" * 64)
    assert (registry.versions(), remains(registry)) == ([], [])


def test_a_busy_server_is_tried_again_and_a_refusal_is_final(registry: Registry, site: Site, file: Path) -> None:
    site.status = [503, 429]
    assert registry.add(site.url, private=True).digest == file_sum(file)
    site.status = [404]
    with pytest.raises(InvalidRequest, match="answered 404"):
        registry.add(site.url, private=True)


def test_a_length_beyond_the_limit_is_refused_before_the_download(registry: Registry, site: Site) -> None:
    with pytest.raises(TooLarge, match="the limit is 1,000"):
        registry.add(site.url, private=True, max_bytes=1000)
    assert remains(registry) == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"PK\x03\x04" + b"x" * 5000, UnsafeFile),
        (b"\x80\x02}q\x00." + b"x" * 5000, UnsafeFile),
        (b"<!doctype html><title>Log in</title>" * 99, CorruptModel),
        ((2**45).to_bytes(8, "little") + b"{}" * 99, CorruptModel),
    ],
)
def test_a_file_that_is_no_model_is_refused_at_its_first_bytes(
    registry: Registry, site: Site, data: bytes, error: type[SafelightError]
) -> None:
    site.data = data
    site.cut_after = [9]  # more than that is not asked for: a second try would show in `ranges`
    with pytest.raises(error):
        registry.add(site.url, private=True)
    assert (len(site.ranges), remains(registry)) == (1, [])


def test_addresses_inside_a_private_network_are_not_reached(registry: Registry, site: Site) -> None:
    with pytest.raises(InvalidRequest, match="inside a private network"):
        registry.add(site.url)
    assert site.ranges == []


@pytest.mark.parametrize("target", ["ftp://example.org/x", "file:///etc/passwd"])
def test_redirects_to_other_schemes_are_refused(registry: Registry, site: Site, target: str) -> None:
    site.redirect = target
    with pytest.raises(InvalidRequest, match="only http and https are allowed"):
        registry.add(site.url, private=True)


def test_a_redirect_loop_ends(registry: Registry, site: Site) -> None:
    site.redirect = site.url
    with pytest.raises(InvalidRequest, match="more than 5 redirects"):
        registry.add(site.url, private=True)


@pytest.mark.parametrize("url", ["ftp://example.org/x.safetensors", "file:///etc/passwd", "gopher://x"])
def test_other_schemes_are_refused(registry: Registry, url: str) -> None:
    with pytest.raises(InvalidRequest, match="is not supported"):
        registry.add(url)
