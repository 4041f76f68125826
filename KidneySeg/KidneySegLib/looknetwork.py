"""The network of a second look in torch, for training; `secondlook` runs its weights without."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from KidneySegLib.secondlook import AXIAL_SHARES, CHANNELS, SAGITTAL, SecondLook


class LookNetwork(nn.Module):
    """Sections of components to logits: (N, views, 2, pixels, pixels) to (N, 2); 1 is kidney.

    Each section becomes the mean of its features within the component beside that over all of it;
    the axial ones are averaged.
    """

    def __init__(self, parameters: SecondLook):
        super().__init__()
        widths = parameters.widths
        layers: list[nn.Module] = []
        before = CHANNELS
        for level, width in enumerate(widths):
            stride = 2 if level == 0 else 1
            layers += [
                nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if 0 < level < len(widths) - 1:
                layers.append(nn.MaxPool2d(2))
            before = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(3 * 2 * before, 2 * parameters.features),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(2 * parameters.features, 2),
        )

    def forward(self, sections: Tensor) -> Tensor:
        components, views = sections.shape[:2]
        pictures = sections.flatten(0, 1)
        seen = self.trunk(pictures)
        inside = nn.functional.adaptive_avg_pool2d(pictures[:, 1:], seen.shape[-2:])
        within = (seen * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1e-3)
        features = torch.cat([within, seen.mean((2, 3))], 1).view(components, views, -1)
        axial = features[:, : len(AXIAL_SHARES)].mean(1)
        logits: Tensor = self.head(torch.cat([axial, *features[:, -2:].unbind(1)], 1))
        return logits


def mirrored(views: Tensor) -> Tensor:
    """Sections (..., views, channels, pixels, pixels) of the patient with left and right changed.

    A sagittal section shows the same then.
    """
    return torch.cat([views[..., :SAGITTAL, :, :, :].flip(-1), views[..., SAGITTAL:, :, :, :]], -4)


def probabilities(network: nn.Module, views: Tensor) -> Tensor:
    """Probability of being a kidney of each component, the mean with its mirror image's.

    Args:
        views: (N, views, 2, pixels, pixels), scaled to 0..1.
    """
    with torch.inference_mode():
        both = torch.stack([network(views), network(mirrored(views))]).float()
    return torch.softmax(both, -1)[..., 1].mean(0)
