import pytest
import torch

from safelight.errors import UnsupportedOption
from safelight.models.networks.placement import Placement, choose_placement, fast_dtypes


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without accelerator or half-precision instructions, whatever this one is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.usefixtures("plain_cpu")
def test_a_plain_cpu_computes_in_float32() -> None:
    placement = choose_placement()
    assert placement == Placement(torch.device("cpu"), torch.float32)
    assert str(placement) == "cpu float32"


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_refused_where_it_is_slow(dtype: str) -> None:
    with pytest.raises(UnsupportedOption, match=f"{dtype} is many times slower than float32 on this cpu"):
        choose_placement("cpu", dtype)


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_device_is_reported(device: str) -> None:
    with pytest.raises(UnsupportedOption, match="device: "):
        choose_placement(device)


@pytest.mark.usefixtures("plain_cpu")
def test_a_cpu_with_half_precision_instructions_uses_them_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_placement("cpu", "bfloat16").dtype == torch.bfloat16
    assert choose_placement("cpu").dtype == torch.float32


def test_accelerators_compute_in_half_precision() -> None:
    assert fast_dtypes("cuda")[0] == fast_dtypes("mps")[0] == torch.float16
    assert torch.float32 in fast_dtypes("cuda")


def test_the_best_available_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_placement() == Placement(torch.device("cuda"), torch.float16)
