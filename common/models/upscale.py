"""From an image of h x w pixels to one of 3.5 h x 3.5 w, and the discriminator that scores such images.

3.5 is 7/2: each block of 2x2 low-resolution pixels becomes one of 7x7. `PixelUnshuffle(2)` folds every 2x2
block into channels, `PixelShuffle(7)` unfolds channels into 7x7 blocks, so input and output are aligned
exactly, with nothing to crop (Shi et al. 2016, "Real-Time Single Image Super-Resolution", section 3.2).
"""

import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

DOWN, UP = 2, 7


def upscaled_size(side: int) -> int:
    """What a side of `side` low-resolution pixels becomes."""
    return (UP * side + 1) // DOWN


def even(lr: Tensor) -> Tensor:
    """`lr` [N,3,h,w] with odd sides made even: one more column on the right, one more row below."""
    height, width = lr.shape[-2:]
    return F.pad(lr, (0, width % DOWN, 0, height % DOWN), mode="replicate")


def bicubic(lr: Tensor) -> Tensor:
    """`lr` [N,3,h,w] to [N,3,3.5h,3.5w], in torch."""
    return F.interpolate(lr, scale_factor=UP / DOWN, mode="bicubic", align_corners=False)


class LinearFilter(nn.Module):
    """The best linear upscaler: every 7x7 block is a weighted sum of the 3x3 blocks of 2x2 around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3 * DOWN**2, 3 * UP**2, 3, padding=1, padding_mode="replicate")

    def forward(self, lr: Tensor) -> Tensor:
        """`lr` [N,3,h,w], h and w even, in 0..1; returns [N,3,3.5h,3.5w], about 0..1."""
        blocks = F.pixel_unshuffle(lr, DOWN)  # [N,12,h/2,w/2]
        return F.pixel_shuffle(self.conv(blocks), UP)  # [N,3,3.5h,3.5w]

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Solves the weights by least squares (normal equations) on pairs of lr and hr, as in `forward`."""
        squares, products = torch.tensor(0.0), torch.tensor(0.0)
        for lr, hr in pairs:
            blocks = F.pad(F.pixel_unshuffle(lr, DOWN), (1, 1, 1, 1), mode="replicate")
            inputs = F.unfold(blocks, 3).transpose(1, 2).flatten(0, 1).double()  # [N*h/2*w/2,108]
            inputs = F.pad(inputs, (0, 1), value=1.0)  # the last weight is the bias
            targets = F.pixel_unshuffle(hr, UP).flatten(2).transpose(1, 2).flatten(0, 1).double()
            squares = squares + (inputs.T @ inputs).cpu()  # [109,109]
            products = products + (inputs.T @ targets).cpu()  # [109,147]
        ridge = 1e-6 * squares.diagonal().mean() * torch.eye(len(squares))  # flat images would be singular
        weights = torch.linalg.solve(squares + ridge, products).float()
        weights, bias = weights[:-1].T.reshape_as(self.conv.weight), weights[-1]
        self.conv.load_state_dict({"weight": weights, "bias": bias})


class Conv3x3(nn.Module):
    """A 3x3 convolution that keeps its weights as a matrix, [out,9 in], which is what Muon steps along."""

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 9 * channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.weight.data *= gain

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.unflatten(1, (-1, 3, 3)), self.bias, padding=1)  # as `x`


class Block(nn.Module):
    """Two convolutions whose output is added to the input, without batch norm (Lim et al. 2017, EDSR)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv3x3(channels, gain=1.0)
        self.second = Conv3x3(channels, gain=0.3)  # so that every block begins as a small step

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))  # [N,channels,h,w], as `x`


class Upscaler(nn.Module):
    """The generator: the linear filter plus what a residual body at the low resolution adds to it.

    Only after the body 2x2 blocks are folded. The skip over the whole body is EDSR's (Lim et al. 2017).

    It begins as the linear filter exactly, since its last layer begins at zero. It is fully convolutional:
    any size goes in, odd sides are padded by one pixel and the surplus is cropped away.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.skip = LinearFilter()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels * DOWN**2, 3 * UP**2, 3, padding=1)
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="relu")
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        self.reach = 2 * blocks + 1 + DOWN
        """How many low-resolution pixels to each side a pixel of the output depends on."""

    def forward(self, lr: Tensor) -> Tensor:
        """`lr` [N,3,h,w] in 0..1; returns float [N,3,(7h+1)//2,(7w+1)//2], about 0..1."""
        height, width = lr.shape[-2:]
        lr = even(lr)  # [N,3,h,w]
        # Without the factor 4 contrasts are so small that the net stays almost linear for minutes
        features = self.head((lr - 0.5) * 4)  # [N,channels,h,w]
        features = F.pixel_unshuffle(features + self.body(features), DOWN)  # [N,4 channels,h/2,w/2]
        detail = F.pixel_shuffle(0.3 * self.tail(features), UP)  # [N,3,3.5h,3.5w]
        with torch.autocast(lr.device.type, enabled=False):  # 8 bits of mantissa would be seen in images
            fake = self.skip(lr) + detail.float()  # [N,3,3.5h,3.5w]
        return fake[..., : upscaled_size(height), : upscaled_size(width)]


class SelfEnsemble(nn.Module):
    """The mean of what a net makes of the eight flips and turns of an image, each turned back.

    From Lim et al. 2017, "Enhanced Deep Residual Networks for Single Image Super-Resolution", section 3.4.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.reach = net, net.reach

    def forward(self, lr: Tensor) -> Tensor:
        """As the net's: `lr` [N,3,h,w] in 0..1; returns float [N,3,(7h+1)//2,(7w+1)//2], about 0..1."""
        height, width = lr.shape[-2:]
        lr = even(lr)  # before it is turned, so that no turn puts the net's own padding elsewhere
        fakes = []
        for turns, flip in itertools.product(range(4), ([], [3])):
            fake = self.net(lr.flip(flip).rot90(turns, (2, 3)))
            fakes.append(fake.rot90(-turns, (2, 3)).flip(flip))
        return torch.stack(fakes).mean(0)[..., : upscaled_size(height), : upscaled_size(width)]


class PatchDiscriminator(nn.Module):
    """One score for each patch of an image, on condition of the lr image that it should belong to.

    It sees what the image adds to bicubic upscaling, and that upscaling. Patches: Isola et al. 2017, pix2pix,
    section 3.2.2. Spectral norm: Miyato et al. 2018, "Spectral Normalization for GANs".
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(  # of 112x112:
            spectral_norm(nn.Conv2d(6, c, 4, stride=2, padding=1)),  # [N,c,56,56]
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(c, 2 * c, 4, stride=2, padding=1)),  # [N,2c,28,28]
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * c, 2 * c, 3, padding=1)),  # [N,2c,28,28]
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * c, 1, 3, padding=1)),  # [N,1,28,28]
        )

    def forward(self, image: Tensor, lr: Tensor) -> Tensor:
        """`image` [N,3,3.5h,3.5w] and `lr` [N,3,h,w] in 0..1; returns float scores [N,1,.875h,.875w]."""
        smooth = bicubic(lr)  # [N,3,3.5h,3.5w]
        # times 8: the finest details have an eighth of the contrast
        return self.layers(torch.cat([8 * (image - smooth), smooth - 0.5], dim=1)).float()
