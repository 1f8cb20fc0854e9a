"""Architectures of libraries that laboratories use, narrow and with random weights."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = {"activation": "logits"}
MEMBRANE = {"activation": "sigmoid logits", "classes": ["background", "foreground"]}
PLANE, CUBE = (1, 1, 128, 128), (1, 1, 48, 48, 48)


@dataclass(frozen=True)
class Architecture:
    """A network of a library."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Shape of the input that it is exported with."""
    told: dict[str, Any] = field(default_factory=lambda: dict(CLASSES))
    """What its author knows about its output, in the words of ``FILE.toml``; written only if emseg asks for it."""
    library: str = ""
    any_tile: bool = True
    """Whether it is exported for tiles of any shape; torch takes more than minutes for some."""


def without_operators_of_torchvision() -> None:
    """Let torchvision be imported beside a torch that it was not built for; only its Python code is used here."""
    if "torchvision" in sys.modules:
        return
    register: Any = torch.library.register_fake

    def registered(name: Any, *given: Any, **more: Any) -> Any:
        return (lambda function: function) if str(name).startswith("torchvision") else register(name, *given, **more)

    torch.library.register_fake = registered


def of(module: str, name: str) -> Any:
    """Return a class of a library, as the first use of it imports the library."""
    without_operators_of_torchvision()
    return getattr(importlib.import_module(module), name)


def alone(package: str) -> None:
    """Make the modules of a package importable without running its ``__init__``, which imports the whole application."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    shell = types.ModuleType(package)
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = shell
    for folder in Path(shell.__path__[0]).iterdir():
        if (folder / "__init__.py").is_file():
            inner = types.ModuleType(f"{package}.{folder.name}")
            inner.__path__ = [str(folder)]
            sys.modules[inner.__name__] = inner


def monai(name: str, *given: Any, **more: Any) -> nn.Module:
    """Return a network of MONAI."""
    made: nn.Module = of("monai.networks.nets", name)(*given, **more)
    return made


def smp(name: str, encoder: str = "resnet18", classes: int = 2, **more: Any) -> nn.Module:
    """Return a network of segmentation-models-pytorch, without weights from elsewhere."""
    made: nn.Module = of("segmentation_models_pytorch", name)(
        encoder_name=encoder, encoder_weights=None, in_channels=1, classes=classes, **more
    )
    return made


def nnunet(
    name: str, dimensions: int, stages: int, norm: str, blocks: Any = 2, strides: Sequence[Any] = (), **more: Any
) -> nn.Module:
    """Return a network as the plans of nnU-Net describe it."""
    conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
    kind = getattr(nn, f"{norm}Norm{dimensions}d")
    made: nn.Module = of("dynamic_network_architectures.architectures.unet", name)(
        1, stages, [min(4 * 2**at, 16) for at in range(stages)], conv, 3, list(strides) or [1] + [2] * (stages - 1), blocks, 2,
        [1] * (stages - 1), conv_bias=True, norm_op=kind, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, **more,
    )  # fmt: skip
    return made


def biapy(module: str, name: str, image: tuple[int, ...], levels: int = 3, **more: Any) -> nn.Module:
    """Return a network of BiaPy."""
    alone("biapy")
    maps = [4 * 2**at for at in range(levels)]
    each = [2] * (levels - 1)
    given: dict[str, Any] = {
        "activation": "elu",
        "feature_maps": maps,
        "drop_values": [0.1] * levels,
        "yx_down": each,
        "z_down": each,
        **more,
    }
    made: nn.Module = of(f"biapy.models.{module}", name)(image_shape=image, **given)
    return made


def torch_em(module: str, name: str, *given: Any, **more: Any) -> nn.Module:
    """Return a network of torch-em."""
    alone("torch_em")
    made: nn.Module = of(f"torch_em.model.{module}", name)(*given, **more)
    return made


def cellpose() -> nn.Module:
    """Return the network of cellpose 3."""
    alone("cellpose")
    made: nn.Module = of("cellpose.resnet_torch", "CPnet")([1, 8, 16, 32], 3, 3, mkldnn=False)
    return made


class Valid(nn.Module):
    """A U-Net without padding and with several heads, as funlib.learn.torch and LSD build it."""

    def __init__(self, width: int = 3, factors: Sequence[Sequence[int]] = ((1, 2, 2), (1, 2, 2)), growth: int = 2) -> None:
        super().__init__()
        widths = [width * growth**at for at in range(len(factors) + 1)]
        self.down = nn.ModuleList(self._pass(1 if at == 0 else widths[at - 1], each) for at, each in enumerate(widths))
        self.pools = nn.ModuleList(nn.MaxPool3d(tuple(factor), tuple(factor)) for factor in factors)
        self.ups = nn.ModuleList(nn.Upsample(scale_factor=tuple(factor), mode="nearest") for factor in reversed(factors))
        self.join = nn.ModuleList(self._pass(widths[at] + widths[at + 1], widths[at]) for at in reversed(range(len(factors))))
        self.factors = [[int(part) for part in factor] for factor in reversed(factors)]
        self.descriptors, self.affinities = nn.Conv3d(width, 10, 1), nn.Conv3d(width, 3, 1)

    @staticmethod
    def _pass(given: int, made: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(given, made, 3), nn.ReLU(inplace=True), nn.Conv3d(made, made, 3), nn.ReLU(inplace=True))

    @staticmethod
    def _crop(x: Tensor, shape: Sequence[int]) -> Tensor:
        starts = [(have - want) // 2 for have, want in zip(x.shape[2:], shape, strict=True)]
        z, y, x_ = (slice(start, start + want) for start, want in zip(starts, shape, strict=True))
        return x[:, :, z, y, x_]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return local shape descriptors and affinities."""
        skips = []
        for down, pool in zip(self.down, (*self.pools, None), strict=True):
            x = down(x)
            skips.append(x)
            x = x if pool is None else pool(x)
        skips.pop()
        for up, join in zip(self.ups, self.join, strict=True):
            x, skip = up(x), skips.pop()
            x = join(torch.cat([self._crop(skip, x.shape[2:]), x], 1))
        return torch.sigmoid(self.descriptors(x)), torch.sigmoid(self.affinities(x))


class Star(nn.Module):
    """A U-Net with a probability and the distances along rays, as StarDist has it."""

    def __init__(self, dimensions: int, rays: int, width: int = 4) -> None:
        super().__init__()
        conv, self.dimensions = (nn.Conv2d, 2) if dimensions == 2 else (nn.Conv3d, 3)
        pool = nn.MaxPool2d if dimensions == 2 else nn.MaxPool3d

        def double(given: int, made: int) -> nn.Module:
            return nn.Sequential(conv(given, made, 3, padding=1), nn.ReLU(), conv(made, made, 3, padding=1), nn.ReLU())

        self.down = nn.ModuleList([double(1, width), double(width, 2 * width), double(2 * width, 4 * width)])
        self.up = nn.ModuleList([double(6 * width, 2 * width), double(3 * width, width)])
        self.pool, self.grow = pool(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.features = conv(width, 8, 3, padding=1)
        self.probability, self.rays = conv(8, 1, 1), conv(8, rays, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of being inside an object, and the distances to its end."""
        fine = self.down[0](x)
        middle = self.down[1](self.pool(fine))
        x = self.grow(self.down[2](self.pool(middle)))
        x = self.grow(self.up[0](torch.cat([x, middle], 1)))
        x = torch.relu(self.features(self.up[1](torch.cat([x, fine], 1))))
        return torch.sigmoid(self.probability(x)), self.rays(x)


STAR_HEADS = {
    "heads": [
        {"name": "objects", "kind": "independent", "output": 0, "names": ["object"], "activation": "sigmoid"},
        {"name": "distances", "kind": "values", "output": 1},
    ]
}
LSD_HEADS = {
    "heads": [
        {"name": "descriptors", "kind": "values", "output": 0, "scale": [0.0, 1.0]},
        {
            "name": "affinities", "kind": "affinities", "output": 1, "activation": "sigmoid",
            "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
        },
    ]
}  # fmt: skip
FLOWS = {
    "heads": [
        {"name": "flows", "kind": "values", "output": 0, "channels": [0, 1], "names": ["y", "x"]},
        {"name": "cells", "kind": "independent", "output": 0, "channels": [2], "activation": "sigmoid logits"},
    ]
}
BOUNDARIES = {"heads": [{"name": "maps", "kind": "independent", "names": ["inside", "edge"], "activation": "sigmoid"}]}
SHARES = {"heads": [{"name": "edges", "kind": "independent", "names": ["inside", "edge"], "activation": "sigmoid logits"}]}


def _library(library: str, *found: Architecture) -> list[Architecture]:
    return [replace(each, library=library) for each in found]


A = Architecture
ALL: list[Architecture] = [
    *_library(
        "MONAI",
        A("UNet 3-D, batch", lambda: monai("UNet", 3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2, norm="BATCH"), CUBE),
        A("UNet 2-D, instance", lambda: monai("UNet", 2, 1, 2, (4, 8, 16), (2, 2)), PLANE),
        A("AttentionUnet 2-D", lambda: monai("AttentionUnet", 2, 1, 2, (4, 8, 16), (2, 2)), PLANE),
        A("BasicUNet 3-D, batch", lambda: monai("BasicUNet", 3, 1, 2, (4, 4, 8, 8, 16, 4), norm="batch"), CUBE),
        A("BasicUNetPlusPlus 2-D", lambda: monai("BasicUNetPlusPlus", 2, 1, 2, features=(4, 4, 8, 8, 16, 4)), PLANE),
        A("DynUNet 3-D, batch",
          lambda: monai("DynUNet", 3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16], norm_name="batch"), CUBE),
        A("SegResNet 3-D", lambda: monai("SegResNet", 3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)), CUBE),
        A("SegResNetDS 2-D, batch",
          lambda: monai("SegResNetDS", 2, 8, 1, 2, blocks_down=(1, 1, 1), norm="BATCH"), PLANE),
        A("VNet 2-D", lambda: monai("VNet", 2, 1, 2), PLANE),
        A("HighResNet 2-D", lambda: monai("HighResNet", 2, 1, 2), PLANE),
        A("FlexibleUNet 2-D",
          lambda: monai("FlexibleUNet", 1, 2, "efficientnet-b0", False, (16, 8, 8, 4, 4), spatial_dims=2), PLANE),
        A("UNETR 3-D",
          lambda: monai("UNETR", 1, 2, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2),
          (1, 1, 32, 32, 32)),
        A("SwinUNETR 2-D", lambda: monai("SwinUNETR", in_channels=1, out_channels=2, feature_size=12, spatial_dims=2), PLANE,
          any_tile=False),
    ),
    *_library(
        "dynamic-network-architectures",
        A("PlainConvUNet 3-D, batch", lambda: nnunet("PlainConvUNet", 3, 3, "Batch"), CUBE),
        A("PlainConvUNet 3-D, instance", lambda: nnunet("PlainConvUNet", 3, 4, "Instance"), CUBE),
        A("PlainConvUNet 3-D, anisotropic, batch",
          lambda: nnunet("PlainConvUNet", 3, 4, "Batch", strides=[1, [1, 2, 2], [1, 2, 2], 2]), CUBE),
        A("PlainConvUNet 2-D, 8 stages, batch", lambda: nnunet("PlainConvUNet", 2, 8, "Batch"), (1, 1, 512, 512)),
        A("PlainConvUNet 2-D, deep supervision", lambda: nnunet("PlainConvUNet", 2, 4, "Batch", deep_supervision=True), PLANE,
          {**CLASSES, "output": 0}),
        A("ResidualEncoderUNet 3-D, instance", lambda: nnunet("ResidualEncoderUNet", 3, 3, "Instance", [1, 2, 2]), CUBE),
        A("ResidualEncoderUNet 2-D, batch", lambda: nnunet("ResidualEncoderUNet", 2, 4, "Batch", [1, 2, 2, 2]), PLANE),
    ),
    *_library(
        "segmentation-models-pytorch",
        A("Unet, resnet18, 1 logit", lambda: smp("Unet", classes=1), PLANE, MEMBRANE),
        A("Unet, efficientnet-b0", lambda: smp("Unet", "efficientnet-b0", 3), PLANE),
        A("UnetPlusPlus", lambda: smp("UnetPlusPlus"), PLANE),
        A("Linknet", lambda: smp("Linknet"), PLANE),
        A("FPN", lambda: smp("FPN"), PLANE),
        A("PSPNet", lambda: smp("PSPNet"), PLANE),
        A("PAN", lambda: smp("PAN"), PLANE),
        A("MAnet", lambda: smp("MAnet"), PLANE),
        A("DeepLabV3Plus", lambda: smp("DeepLabV3Plus"), PLANE),
        A("UPerNet", lambda: smp("UPerNet"), PLANE),
        A("Segformer", lambda: smp("Segformer", "mit_b0"), PLANE),
    ),
    *_library(
        "torch-em",
        A("UNet2d, inside and edge", lambda: torch_em("unet", "UNet2d", 1, 2, depth=3, initial_features=4,
          final_activation="Sigmoid"), PLANE, BOUNDARIES),
        A("UNet3d", lambda: torch_em("unet", "UNet3d", 1, 2, depth=3, initial_features=4), CUBE, SHARES),
        A("AnisotropicUNet", lambda: torch_em("unet", "AnisotropicUNet", 1, 2, [[1, 2, 2], [2, 2, 2]], initial_features=4),
          CUBE),
    ),
    *_library(
        "as funlib.learn.torch",
        A("valid U-Net 3-D, LSDs and affinities", Valid, (1, 1, 36, 84, 84), LSD_HEADS),
        A("valid U-Net 3-D, isotropic", lambda: Valid(factors=((2, 2, 2), (2, 2, 2))), (1, 1, 84, 84, 84), LSD_HEADS),
    ),
    *_library("cellpose", A("CPnet", cellpose, (1, 1, 224, 224), FLOWS)),
    *_library(
        "as StarDist",
        A("StarDist 2-D, 32 rays", lambda: Star(2, 32), PLANE, STAR_HEADS),
        A("StarDist 3-D, 24 rays", lambda: Star(3, 24), CUBE, STAR_HEADS),
    ),
    *_library(
        "BiaPy",
        A("U_Net 2-D, batch", lambda: biapy("unet", "U_Net", (128, 128, 1), normalization="bn"), PLANE, MEMBRANE),
        A("ResUNet 3-D, batch", lambda: biapy("resunet", "ResUNet", (48, 48, 48, 1), normalization="bn"), CUBE, MEMBRANE),
        A("Attention_U_Net 2-D, batch",
          lambda: biapy("attention_unet", "Attention_U_Net", (128, 128, 1), normalization="bn"), PLANE, MEMBRANE),
        A("SE_U_Net 2-D, batch",
          lambda: biapy("seunet", "SE_U_Net", (128, 128, 1), normalization="bn", feature_maps=[16, 32, 64]), PLANE, MEMBRANE),
    ),
]  # fmt: skip
"""All architectures, by library."""
