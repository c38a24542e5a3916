"""Writes what torch answers for the losses of style transfer and their gradient: models/<name>/parity.npz of both backbones.

    pip install torch==2.13.0 h5py numpy
    python tests/golden/make_gatys.py hed_bsds500.weights.h5 yolov3-tiny.weights

Everything is written anew here, in float64, from the papers: reading the weights, the networks, the losses, and autograd for the
gradient. Targets are made up, so that they take little room; they are as large as a picture's.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MODELS = Path(__file__).parents[2] / "models"
HEIGHT, WIDTH = 45, 58  # odd on the way down: 22, 11, 5, 2 and 29, 14, 7, 3
WEIGHTS = {"content_weight": 3.0, "style_weight": 2.0, "variation_weight": 2000.0}
SAMPLES = 300

Step = Callable[[Tensor], Tensor]
Network = tuple[list[tuple[str, Tensor, Tensor]], Step, Step]
"""Each convolution's name, kernels and bias; what is done to the picture before the first; the activation."""


def vgg16(path: Path) -> Network:
    found = []
    with h5py.File(path) as file:
        for block in range(1, 6):
            for index in range(2 if block < 3 else 3):
                group = file[f"block{block}/layers/conv2d{['', '_1', '_2'][index]}/vars"]
                kernel = torch.tensor(group["0"][()], dtype=torch.float64).permute(3, 2, 0, 1)
                found.append((f"conv{block}_{index + 1}", kernel, torch.tensor(group["1"][()], dtype=torch.float64)))
    means = torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64)[None, :, None, None]
    return found, lambda rgb: rgb[:, [2, 1, 0]] - means, F.relu


def darknet(path: Path) -> Network:
    numbers = torch.tensor(np.fromfile(path, np.float32, offset=20), dtype=torch.float64)
    found, channels = [], 3
    for index, count in enumerate((16, 32, 64, 128, 256, 512)):
        (beta, gamma, mean, variance), numbers = numbers[: 4 * count].reshape(4, count), numbers[4 * count :]
        kernel, numbers = numbers[: count * channels * 9].reshape(count, channels, 3, 3), numbers[count * channels * 9 :]
        scale = gamma / torch.sqrt(variance + 1e-6)
        found.append((f"conv{index + 1}", kernel * scale[:, None, None, None], beta - mean * scale))
        channels = count
    return found, lambda rgb: rgb / 255, lambda x: F.leaky_relu(x, 0.1)


def features(picture: Tensor, network: Network, pooled: set[str]) -> dict[str, Tensor]:
    convolutions, prepare, activate = network
    x, found = prepare(picture), {}
    for name, kernel, bias in convolutions:
        x = F.avg_pool2d(x, 2) if name in pooled else x
        x = found[name] = activate(F.conv2d(x, kernel, bias, padding=1))
    return found


def gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def pattern(shape: tuple[int, ...], size: float) -> NDArray[np.float32]:
    """Numbers of about `size` that repeat, and so take little room."""
    strides = np.arange(2, 2 + len(shape))
    places = sum(stride * axis for stride, axis in zip(strides, np.ogrid[tuple(slice(n) for n in shape)], strict=True))
    return np.asarray(np.broadcast_to(places % 7, shape) * np.float32(round(size, 1) / 3), np.float32)


def make(name: str, network: Network, pooled: set[str], content: list[str], style: list[str]) -> None:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [127 + 120 * np.sin(rows / a + columns / b) for a, b in ((3, 7), (9, -4), (-5, 11))]
    picture = np.rint(np.stack(waves) + 7 * ((rows // 4 + columns // 6) % 2)).clip(0, 255).astype(np.float32)[None]
    x = torch.tensor(picture, dtype=torch.float64, requires_grad=True)
    found = features(x, network, pooled)
    arrays: dict[str, NDArray] = {f"{graph}/in/picture": picture for graph in ("model", "targets", "features")}
    arrays |= {f"model/in/{key}": np.array([value], np.float32) for key, value in WEIGHTS.items()}

    def answer(graph: str, output: str, value: Tensor) -> None:
        flat = value.detach().numpy().ravel()
        at = np.unique(np.linspace(0, flat.size - 1, SAMPLES).astype(np.int32))
        arrays[f"{graph}/at/{output}"], arrays[f"{graph}/values/{output}"] = at, flat[at].astype(np.float32)

    def error(value: Tensor, target: NDArray[np.float32]) -> Tensor:
        wanted = torch.tensor(target, dtype=torch.float64)
        return ((value - wanted) ** 2).sum() / (wanted**2).sum()

    losses = {"content": [], "style": []}
    for layer, value in found.items():
        answer("features", f"features/{layer}", value)
    for layer in content:
        target = arrays[f"model/in/content/{layer}"] = pattern(tuple(found[layer].shape), found[layer].detach().abs().mean().item())
        answer("targets", f"features/{layer}", found[layer])
        losses["content"].append(error(found[layer], target))
    for layer in style:
        own = gram(found[layer])
        target = arrays[f"model/in/gram/{layer}"] = pattern(tuple(own.shape), own.detach().abs().mean().item())
        answer("targets", f"gram/{layer}", own)
        losses["style"].append(error(own, target))
    terms = {key: sum(values) / len(values) for key, values in losses.items()}
    unit = x / 255
    terms["variation"] = ((unit[:, :, 1:] - unit[:, :, :-1]) ** 2).mean() + ((unit[..., 1:] - unit[..., :-1]) ** 2).mean()
    for key, value in terms.items():
        arrays[f"model/out/{key}"] = np.array([value.item()], np.float32)
        (own,) = torch.autograd.grad(value * WEIGHTS[f"{key}_weight"], x, retain_graph=True)
        sys.stdout.write(f"{name}: {key} {value.item():.4g}, its gradient up to {own.abs().max().item():.3g}\n")
    (gradient,) = torch.autograd.grad(sum(WEIGHTS[f"{key}_weight"] * value for key, value in terms.items()), x)
    arrays["model/out/gradient"] = gradient.numpy().astype(np.float32)
    np.savez_compressed(MODELS / name / "parity.npz", **arrays)


if __name__ == "__main__":
    vgg, tiny = map(Path, sys.argv[1:])
    firsts = [f"conv{block}_1" for block in range(1, 6)]
    make("vgg16-hed", vgg16(vgg), set(firsts[1:]), ["conv4_2"], firsts)
    every = [f"conv{index}" for index in range(1, 7)]
    make("yolov3-tiny-features", darknet(tiny), set(every[1:]), ["conv4"], every[:5])
