"""A small ResNet in training, and the judgement whether a loss curve is one that PyTorch draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
EARLY = 20  # steps, in which rounding has not yet been blown up to the size of the loss
LATE = 50  # steps, which a loss that has fallen is averaged over

# Were a run but one more of the references' kind, and distances normal, its distance from the mean
# of five would exceed eight times the largest of theirs once in 1800 times.
FACTOR = 8.0


@dataclass(frozen=True)
class Task:
    """What is trained.

    Args:
        device: where.
        width: channels of every stage.
        size: rows and columns of an image.
        batch, steps: images of a step, and steps.
        noise: of an image, in units of its texture: how hard it is.
        dtype: of everything.
    """

    device: str
    width: int
    size: int
    batch: int
    steps: int
    noise: float
    dtype: torch.dtype = torch.float32


class Block(nn.Module):
    """Of a pre-activation ResNet: x + conv(relu(norm(conv(relu(norm(x)))))), perhaps of a stride.

    What is added has no norm behind it, up to the end of the network: so biases matter.
    """

    def __init__(self, layer: type[nn.Conv2d], channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = layer(channels, channels, 3, stride, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = layer(channels, channels, 3, 1, 1)
        self.shortcut = layer(channels, channels, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        y = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class ResNet(nn.Sequential):
    """Eight convolutions of one width: equal ones share their kernels, which compile slowly."""

    def __init__(self, layer: type[nn.Conv2d], width: int) -> None:
        super().__init__(
            layer(3, width, 3, 1, 1),
            Block(layer, width),
            Block(layer, width, stride=2),
            Block(layer, width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, CLASSES),
        )


def losses(
    task: Task,
    layer: type[nn.Conv2d] = nn.Conv2d,
    memory_format: torch.memory_format = torch.contiguous_format,
    prepare: Callable[[ResNet], object] = lambda model: None,
) -> Tensor:
    """The loss of each step of SGD with momentum, from the same weights and on the same images.

    An image is its class's 8x8 texture, repeated and moved about, under noise: a class cannot be
    told by any pixel, nor by anything that needs no convolution.

    Args:
        task: what is trained.
        layer: its convolutions.
        memory_format: of the images and the weights.
        prepare: is given the model before its first step.
    """
    torch.manual_seed(0)
    model = ResNet(layer, task.width).to(task.device, task.dtype, memory_format=memory_format)
    prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    textures = torch.randn(CLASSES, 3, 8, 8).to(task.device)
    generator = torch.Generator(task.device).manual_seed(1)
    curve = []
    for _ in range(task.steps):
        x, labels = _images(task, textures, generator)
        x = x.to(memory_format=memory_format)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    return torch.stack(curve).double().cpu()


def _images(task: Task, textures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch, drawn on the task's device."""

    def integers(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator, device=task.device)

    labels = integers(CLASSES, task.batch)
    along = torch.arange(task.size, device=task.device)
    rows, columns = ((integers(8, task.batch, 1) + along) % 8 for _ in range(2))
    images = textures[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    noise = torch.randn(images.shape, generator=generator, device=task.device)
    x = (images + task.noise * noise).permute(0, 3, 1, 2).contiguous()
    return x.to(task.dtype), labels


def deviations(curve: Tensor, references: Sequence[Tensor]) -> dict[str, float]:
    """How far a loss curve L is from PyTorch's, in units of how far those are from one another.

        early = rms over the first 20 steps of (L - C)
        late  = |mean over the last 50 steps of (L - C)|

    where C is the mean of the reference curves R; each divided by the largest that it is for one of
    the R. Early, runs of one and the same algorithm in different rounding differ by little, so an
    error in a gradient is seen though it is small; late, training has become chaotic, and it is
    whether a run learns as well as the others that shows. Up to ``FACTOR`` it is one of them.
    """
    centre = torch.stack(list(references)).mean(0)

    def distances(one: Tensor) -> dict[str, float]:
        away = one - centre
        return {
            "early": away[:EARLY].square().mean().sqrt().item(),
            "late": away[-LATE:].mean().abs().item(),
        }

    of_references = [distances(one) for one in references]
    return {
        name: distance / max(of_reference[name] for of_reference in of_references)
        for name, distance in distances(curve).items()
    }
