"""Nets for characters of 28x28 pixels: generator, discriminator, and a classifier.

Generator and discriminator can be several `nets` side by side, which share nothing: each layer is one grouped
convolution, so ten small nets cost about as much as one large one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift belong to the class (Dumoulin et al. 2017, "A Learned Representation
    for Artistic Style", section 2.2)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, momentum=0.02)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """`x` [N,C,h,w] and labels [N]; returns [N,C,h,w]."""
        scale, shift = (of(label)[..., None, None] for of in (self.scale, self.shift))  # [N,C,1,1] each
        return torch.addcmul(shift, self.norm(x), scale)


class Generator(nn.Module):
    """From noise to images: one linear layer to 7x7, then two transposed convolutions, each doubling it
    (after Radford et al. 2016, DCGAN, at MNIST's own size).

    Each image is made of `latent` numbers of noise. There are `channels` at 14x14, twice as many at 7x7; an
    unconditional net has 0 `classes`.
    """

    def __init__(self, latent: int, channels: int, classes: int = 0, nets: int = 1) -> None:
        super().__init__()
        self.size = [latent, channels, classes, nets]  # what builds it again
        self.latent, self.nets, c = latent, nets, channels
        self.first = nn.Parameter(0.05 * torch.randn(nets, latent, 49 * 2 * c))
        # what belongs to the class from the start; by scales and shifts alone it is learned far slower
        self.template = nn.Embedding(classes, 49 * 2 * c) if classes else None
        self.up = nn.ConvTranspose2d(nets * 2 * c, nets * c, 4, stride=2, padding=1, groups=nets, bias=False)
        self.last = nn.ConvTranspose2d(nets * c, nets, 4, stride=2, padding=1, groups=nets)
        self.norms = nn.ModuleList(
            ConditionalNorm(nets * width, classes) if classes else nn.BatchNorm2d(nets * width, momentum=0.02)
            for width in (2 * c, c)
        )
        for layer, std in ((self.up, 0.05), (self.last, 0.05), (self.template, 0.2)):
            if layer:
                nn.init.normal_(layer.weight, std=std)

    def forward(self, noise: Tensor, *label: Tensor) -> Tensor:
        """Normal noise [N,nets,latent], with classes labels [N]; returns [N,nets,28,28], 0..1, 1 for ink."""
        x = torch.bmm(noise.transpose(0, 1), self.first)  # [nets,N,49*2c]
        if self.template:
            x = x + self.template(*label)
        x = x.unflatten(2, (7, 7, -1)).permute(1, 2, 3, 0, 4).flatten(3)  # [N,7,7,nets*2c]
        x = x.permute(0, 3, 1, 2)  # [N,nets*2c,7,7], in memory with the channels last: faster
        x = F.leaky_relu(self.norms[0](x, *label), 0.2)
        x = F.leaky_relu(self.norms[1](self.up(x), *label), 0.2)  # [N,nets*c,14,14]
        return torch.sigmoid(self.last(x).float())  # [N,nets,28,28]


class Discriminator(nn.Module):
    """Three convolutions; arguments as the generator's.

    Before the last, the minibatch standard deviation says how much the images of a `group` differ: who
    repeats himself is found out (Karras et al. 2018, "Progressive Growing of GANs", section 3); 0 leaves it
    out. With classes, the images of a group, which stand N / `group` apart, must be of one: it has to be said
    how much one a differs from another a. So `alike` is how many must be of one class, 0 for as it comes.

    With `shift` each image, real or fake, is a pixel off when it is looked at, so that few real ones are not
    soon known by heart (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training").
    """

    def __init__(
        self, channels: int, classes: int = 0, nets: int = 1, group: int = 4, shift: bool = False
    ) -> None:
        super().__init__()
        self.nets, self.group, self.shift, c = nets, group, shift, channels
        self.place = 0, 1  # of this process among several, each of which has every n-th image; and n
        self.alike = max(group, 1) if classes else 0
        first = nn.Conv2d(nets, nets * c, 4, stride=2, padding=1, groups=nets)  # [N,nets*c,14,14]
        second = nn.Conv2d(nets * c, nets * 2 * c, 4, stride=2, padding=1, groups=nets)  # [N,nets*2c,7,7]
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2))
        self.last = nn.Conv2d(nets * (2 * c + 1), nets * 2 * c, 3, padding=1, groups=nets)
        self.real = nn.Conv2d(nets * 2 * c, nets, 7, groups=nets)  # [N,nets,1,1]
        self.match = nn.Linear(2 * c * 49, classes, bias=False) if classes else None  # [N,classes]
        if self.match:
            nn.init.normal_(self.match.weight, std=0.01)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [N,nets,28,28] in 0..1, N a multiple of `group`; returns how real each is, [N,nets], and,
        with classes, what to add to that if it is to be of this class, [N,classes] (projection: Miyato,
        Koyama 2018, "cGANs with Projection Discriminator", section 3)."""
        if self.shift:
            images = self._shifted(images)
        x = self.layers((2 * images - 1).contiguous(memory_format=torch.channels_last))  # [N,nets*2c,7,7]
        x = x.reshape(len(x), self.nets, -1, 7, 7)  # [N,nets,2c,7,7]
        x = torch.cat([x, self._deviation(x)], dim=2).flatten(1, 2)  # [N,nets*(2c+1),7,7]
        x = F.leaky_relu(self.last(x), 0.2)  # [N,nets*2c,7,7]
        with torch.autocast(x.device.type, enabled=False):  # scores of 8 bits would hardly differ
            x = x.float()
            return self.real(x).flatten(1), self.match(x.flatten(1)) if self.match else None

    def _shifted(self, images: Tensor) -> Tensor:
        """`images` [N,nets,28,28], N a multiple of 8, each moved by a pixel, the next one another way."""
        eights = F.pad(images, (1, 1, 1, 1)).unflatten(0, (-1, 8))  # [N/8,8,nets,30,30]
        ways = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
        first, step = self.place
        way = [ways[(first + i * step) % 8] for i in range(8)]
        moved = [eights[:, i, :, y : y + 28, x : x + 28] for i, (y, x) in enumerate(way)]
        return torch.stack(moved, dim=1).flatten(0, 1)

    def _deviation(self, x: Tensor) -> Tensor:
        """Minibatch standard deviation of `x` [N,nets,2c,7,7]; returns [N,nets,1,7,7]."""
        if not self.group:
            return x.new_zeros(len(x), self.nets, 1, 7, 7)
        groups = x.float().unflatten(0, (self.group, -1))  # [group,N/group,nets,2c,7,7]
        centred = groups - groups.mean(0)  # torch's own var takes four times as long across the batch
        deviation = (centred.square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))  # [N/group,nets]
        return deviation.repeat(self.group, 1)[..., None, None, None].expand(-1, -1, 1, 7, 7)


class Classifier(nn.Module):
    """Names the character; the evaluator and Method 2's classifier are of this kind.

    Two convolutions have `channels`, two have twice as many; `features` numbers come before the last layer.
    """

    def __init__(self, channels: int, features: int, classes: int) -> None:
        super().__init__()
        self.size, c = [channels, features, classes], channels  # the first is what builds it again

        def block(before: int, after: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

        self.body = nn.Sequential(
            *block(1, c),  # [N,c,28,28]
            *block(c, c),
            nn.MaxPool2d(2),  # [N,c,14,14]
            *block(c, 2 * c),
            *block(2 * c, 2 * c),
            nn.MaxPool2d(2),  # [N,2c,7,7]
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * c * 49, features),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(features, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N,1,28,28] in 0..1; returns logits [N,classes]."""
        return self.head(self.body(2 * images - 1))

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of uint8 [N,28,28], 255 for ink: features [N,features], at least 0, and logits [N,classes], on the
        CPU."""
        self.eval()
        device = next(self.parameters()).device
        parts = [self.body(2 * (x[:, None].to(device).float() / 255) - 1) for x in images.split(500)]
        features = torch.cat(parts)
        return features.cpu(), self.head(features).cpu()

    @torch.no_grad()
    def normalise(self, images: Tensor) -> None:
        """Scales the features of `images`, uint8 [N,28,28], to a mean variance of 1, so that distances by
        classifiers of different training have about the same size; no answer changes."""
        size = self.predict(images)[0].var(0).mean().sqrt().item()
        for weight in self.body[-2].parameters():
            weight.mul_(1 / size)
        next(self.head[-1].parameters()).mul_(size)  # the ReLU between the two layers lets factors pass
