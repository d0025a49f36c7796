"""The generator: sizes, alignment, what it starts from, how far it sees."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import degradation
from common.datasets.images import to_float
from common.models.upscale import (
    LinearFilter,
    PatchDiscriminator,
    SelfEnsemble,
    Upscaler,
    bicubic,
    even,
    upscaled_size,
)


def lively(channels: int = 8, blocks: int = 1) -> Upscaler:
    """An upscaler whose last layer is not zero, as after training."""
    torch.manual_seed(0)
    net = Upscaler(channels, blocks).eval()
    torch.nn.init.normal_(net.tail.weight, std=0.05)
    return net


@given(height=st.integers(1, 21), width=st.integers(1, 21))
@settings(max_examples=25, deadline=None)
def test_any_size_goes_in_and_seven_halves_of_it_come_out(height: int, width: int) -> None:
    fake = lively()(torch.rand(1, 3, height, width))
    assert fake.shape == (1, 3, (7 * height + 1) // 2, (7 * width + 1) // 2)


@torch.no_grad()
def test_an_odd_image_is_the_crop_of_an_even_one() -> None:
    net, lr = lively(), torch.rand(1, 3, 9, 13)
    even = F.pad(lr, (0, 1, 0, 1), mode="replicate")
    torch.testing.assert_close(net(lr), net(even)[..., :32, :46])


@torch.no_grad()
def test_it_begins_as_the_linear_filter() -> None:
    net, lr = Upscaler(8, 2), torch.rand(2, 3, 16, 16)
    assert torch.equal(net(lr), net.skip(lr))


def test_the_linear_filter_is_fitted_and_aligned() -> None:
    """Smooth waves are reproduced where they are: a shift of half a pixel would leave 100 times the error."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    k, phase = 0.12 * torch.rand(40, 3, 2, 1, 1) - 0.06, 6.3 * torch.rand(40, 3, 1, 1)
    waves = 127.5 + 100 * torch.sin(k[:, :, 0] * y + k[:, :, 1] * x + phase)
    hr8 = waves.round().byte()
    lr, hr = to_float(degradation.downscale(hr8)), to_float(hr8)
    linear = LinearFilter()
    linear.fit([(lr[:30], hr[:30])])
    with torch.no_grad():
        error = F.mse_loss(linear(lr[30:]), hr[30:])
    assert error < 2e-5, "no more than rounding to 8 bits leaves"
    assert error < F.mse_loss(bicubic(lr[30:]), hr[30:])


@torch.no_grad()
def test_no_other_linear_filter_is_better() -> None:
    """The optimum: a step in any direction makes the error on the images it was fitted on larger."""
    torch.manual_seed(0)
    lr, hr = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 56, 56)
    linear = LinearFilter()
    linear.fit([(lr, hr)])
    best = F.mse_loss(linear(lr), hr)
    for _ in range(5):
        linear.conv.weight += (step := 0.01 * torch.randn_like(linear.conv.weight))
        assert F.mse_loss(linear(lr), hr) > best
        linear.conv.weight -= step


@pytest.mark.parametrize("blocks", [1, 3])
def test_reach_is_how_far_a_pixel_sees(blocks: int) -> None:
    net, size = lively(blocks=blocks), 64
    lr = torch.rand(1, 3, size, size, requires_grad=True)
    fake = net(lr)
    middle = 7 * size // 4  # the first row of the block that begins at lr row 32
    fake[..., middle : middle + 7, middle : middle + 7].abs().sum().backward()
    assert lr.grad is not None
    rows = lr.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert size // 2 - net.reach == rows.min()
    assert size // 2 + 1 + net.reach == rows.max()


def test_the_discriminator_scores_patches_and_sees_both_images() -> None:
    torch.manual_seed(0)
    discriminator, lr, hr = PatchDiscriminator(8), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 112, 112)
    scores = discriminator(hr, lr)
    assert scores.shape == (2, 1, 28, 28)
    assert not torch.allclose(scores, discriminator(hr.flip(3), lr))
    assert not torch.allclose(scores, discriminator(hr, lr.flip(3)))


class Bicubic(torch.nn.Module):
    """Treats all directions alike."""

    reach = 3

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        height, width = map(upscaled_size, lr.shape[-2:])
        return bicubic(even(lr))[..., :height, :width]


@given(height=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_self_ensemble_leaves_a_net_that_treats_all_directions_alike_as_it_is(
    height: int, width: int
) -> None:
    """At odd sizes a flip of the padded image must not move it by a pixel."""
    lr = torch.rand(2, 3, height, width)
    torch.testing.assert_close(SelfEnsemble(Bicubic())(lr), Bicubic()(lr))


@torch.no_grad()
def test_self_ensemble_flips_and_turns_with_the_image() -> None:
    net = lively()
    both, lr = SelfEnsemble(net), torch.rand(1, 3, 8, 14)
    assert both.reach == net.reach
    fake = both(lr)
    assert (fake - net(lr)).abs().max() > 0.01
    for turn in (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.rot90(1, (2, 3))):
        torch.testing.assert_close(both(turn(lr)), turn(fake))
        assert (net(turn(lr)) - turn(net(lr))).abs().max() > 0.01
    eight = [net(lr.rot90(k, (2, 3))).rot90(-k, (2, 3)) for k in range(4)]
    eight += [net(lr.flip(3).rot90(k, (2, 3))).rot90(-k, (2, 3)).flip(3) for k in range(4)]
    torch.testing.assert_close(fake, sum(eight) / 8)
