"""Small networks with the structure of common ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Chain(nn.Module):
    """A 2-D U-Net of any number of stages: strided convolutions down, transposed ones up, with skips."""

    def __init__(self, stages: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, width: int = 2, kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(5)
        pad = kernel // 2
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width if at else 1, width, kernel, 2 if at else 1, pad), norm(width), nn.LeakyReLU(0.1))
            for at in range(stages)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, 2) for _ in range(stages - 1))
        self.join = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(stages - 1))
        self.last = nn.Conv2d(width, 2, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = functional.leaky_relu(join(torch.cat([skips.pop(), up(x)], 1)), 0.1)
        given: Tensor = 3 * self.last(x)
        return given


class Squeezed(nn.Module):
    """A network in which the mean of the whole image weights the channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.gate, self.last = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, 2, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        fine = self.first(x)
        given: Tensor = 5 * self.last(fine * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(fine, 1))))
        return given


class Resized(nn.Module):
    """A network that resizes its output to the shape of the image, which an export for one shape writes down."""

    def __init__(self, mode: str = "bilinear", *, corners: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, 2, 1)
        self.mode, self.corners = mode, corners
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        coarse = self.second(torch.relu(self.first(x)))
        return 5 * functional.interpolate(coarse, size=x.shape[-2:], mode=self.mode, align_corners=self.corners)


class Cropped(nn.Module):
    """A 3-D U-Net without padding, which crops its skip."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 3)
        self.last = nn.Conv3d(4, 2, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the voxels with full context."""
        fine = torch.relu(self.first(x))
        up = functional.interpolate(self.second(functional.max_pool3d(fine, 2)), scale_factor=2.0, mode="nearest")
        z, y, x_ = ((a - b) // 2 for a, b in zip(fine.shape[2:], up.shape[2:], strict=True))
        fine = fine[:, :, z : z + up.shape[2], y : y + up.shape[3], x_ : x_ + up.shape[4]]
        given: Tensor = 5 * self.last(torch.cat([fine, up], 1))
        return given


class Styled(nn.Module):
    """A network whose linear layer takes the pooled features of an image of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.style, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 4), nn.Conv2d(4, 2, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        fine = self.first(x)
        style = self.style(functional.avg_pool2d(fine, 32).flatten(1))
        given: Tensor = 5 * self.last(fine + style[:, :, None, None])
        return given


class Attentive(nn.Module):
    """A transformer over patches of 8 x 8 voxels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patch, self.mix = nn.Conv2d(1, 8, 8, 8), nn.Linear(8, 24)
        self.up = nn.ConvTranspose2d(8, 2, 8, 8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        patches = self.patch(x)
        tokens = patches.flatten(2).transpose(1, 2)
        query, key, value = self.mix(tokens).chunk(3, dim=-1)
        tokens = tokens + torch.softmax(query @ key.transpose(1, 2), -1) @ value
        given: Tensor = 5 * self.up(tokens.transpose(1, 2).reshape(patches.shape))
        return given
