"""How small images are made: by torchvision's resize to be scored, by kernels that are drawn to train."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from common.datasets import degradation
from common.datasets.dead_leaves import dead_leaves
from common.datasets.images import to_float


@pytest.fixture(scope="module")
def hr() -> torch.Tensor:
    images = [TF.pil_to_tensor(dead_leaves(seed)) for seed in range(8)]
    return torch.stack([image[:, :112, :112] for image in images])


@pytest.mark.parametrize("kernel", degradation.KERNELS)
def test_downscale_is_torchvisions_resize_in_any_memory_layout(kernel: str) -> None:
    hr = torch.randint(0, 256, (3, 3, 224, 448), dtype=torch.uint8)
    plain = TF.resize(hr, [64, 128], InterpolationMode(kernel), antialias=True)
    assert torch.equal(degradation.downscale(hr, kernel), plain)
    assert torch.equal(degradation.downscale(hr.to(memory_format=torch.channels_last), kernel), plain)
    assert torch.equal(degradation.downscale(hr[0], kernel), plain[0])


@pytest.mark.parametrize("hr", [torch.zeros(3, 224, 223, dtype=torch.uint8), torch.zeros(3, 224, 224)])
def test_downscale_refuses_what_it_cannot_do_exactly(hr: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="multiples of 7"):
        degradation.downscale(hr)


def test_half_of_the_kernels_drawn_are_torchvisions_bilinear_and_the_others_differ(hr: torch.Tensor) -> None:
    kernels = degradation.draw_kernels(np.random.default_rng(1), 400, 112)
    assert kernels.shape == (400, 32, 112)
    torch.testing.assert_close(kernels.sum(2), torch.ones(400, 32))
    bilinear = F.interpolate(torch.eye(112)[None, None], (32, 112), mode="bilinear", antialias=True)[0, 0]
    shares = torch.isclose(kernels, bilinear, atol=1e-6).all(2).all(1).float().mean()
    assert 0.4 < shares < 0.5, "half, and one in ten of them is blurred"
    assert len(kernels.flatten(1).unique(dim=0)) > 80, "the rest are many"
    lr = degradation.shrink(to_float(hr), bilinear.expand(len(hr), -1, -1))
    assert (255 * lr - degradation.downscale(hr).float()).abs().max() < 1.01, "no more than rounding twice"


def test_pairs_follow_from_the_random_numbers_alone_and_spoil_only_wild_ones(hr: torch.Tensor) -> None:
    (lr, kernels), again, (wild, same) = (
        degradation.draw_pairs(hr, np.random.default_rng(3), kind) for kind in ("classic", "classic", "wild")
    )
    assert lr.dtype == wild.dtype == torch.uint8 and lr.shape == wild.shape == (8, 3, 32, 32)
    assert torch.equal(lr, again[0]) and torch.equal(kernels, again[1]) and torch.equal(kernels, same)
    exact = degradation.shrink(to_float(hr), kernels).clamp(0, 1)  # Lanczos reaches beyond
    assert (255 * exact - lr.float()).abs().max() <= 0.501
    spoiled = (wild != lr).flatten(1).any(1)
    assert 2 <= spoiled.sum() < 8, "some stay as they are"
    assert (wild.float() - lr.float()).abs().mean() < 8, "and none is lost"
