"""Writes what torch answers, with the package that these weights were published for.

    pip install torch==2.13.* efficientnet-lite-pytorch==0.1.0 scikit-image scikit-learn
    python tests/golden/make_efficientnet_lite0.py efficientnet-lite0-57934424.pth

Two files come out:
    models/efficientnet-lite0/parity.npz   two drawn pictures and their logits; one of another size, its logits and, at some places,
                                           the last layer on each position of torch's last feature map; guards every export
    tests/golden/efficientnet-lite0.npz    per photo NAME:
        NAME/cut     [1000] logits of the photo's central 224 x 224 pixels as they are
        NAME/whole   [1000] logits after the central crop, resized by torch (bicubic; by areas from a factor of 2 on)
"""

import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "models" / "efficientnet-lite0"
SIZE, CROP = 224, 224 / 256
PLACES = 2000  # numbers of the maps that are stored

Pixels = NDArray[np.uint8]


def photos() -> dict[str, Pixels]:
    """Photos that ship inside the wheels of scikit-image and scikit-learn, RGB."""
    found = {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    return found | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def drawings() -> Pixels:
    """Two coloured ramps with a disc and stripes, [2, 224, 224, 3]; no flip, shift or swapped channel leaves the answer be."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    ramp = np.stack([columns, SIZE - 1 - rows, (rows + columns) // 2], axis=-1).astype(np.uint8) // 8 * 8
    first, second = ramp.copy(), ramp[::-1, :, ::-1].copy()
    first[(rows - 90) ** 2 + (columns - 130) ** 2 < 60**2] = (250, 120, 20)
    first[(rows - 75) ** 2 + (columns - 110) ** 2 < 12**2] = (30, 30, 40)
    second[(rows > 60) & (rows < 190) & (columns // 13 % 2 == 0)] = (240, 230, 60)
    return np.stack([first, second])


def crop(photo: Pixels) -> Pixels:
    height, width = photo.shape[:2]
    side = int(CROP * min(height, width))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    square = torch.from_numpy(photo[top : top + side, left : left + side].astype(np.float32)).permute(2, 0, 1)[None]
    how = {"mode": "area"} if side >= 2 * SIZE else {"mode": "bicubic", "align_corners": False}
    resized = torch.nn.functional.interpolate(square, (SIZE, SIZE), **how)
    return resized[0].permute(1, 2, 0).add(0.5).floor().clamp(0, 255).to(torch.uint8).numpy()


def cut(photo: Pixels) -> Pixels:
    top, left = ((side - SIZE) // 2 for side in photo.shape[:2])
    return photo[top : top + SIZE, left : left + SIZE]


def main(weights: str) -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))

    def logits(pictures: Pixels) -> NDArray[np.float32]:
        tensor = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
        with torch.no_grad():
            return network((tensor - 127) / 128).numpy()

    def maps(pictures: Pixels) -> NDArray[np.float32]:
        tensor = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
        with torch.no_grad():
            features = network.extract_features((tensor - 127) / 128)
            return network._fc(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).numpy()

    pictures = drawings()
    wide = np.ascontiguousarray(np.concatenate([pictures[0], pictures[1, :, :96]], axis=1)[None, :192])  # 192 x 320
    seen = maps(wide)
    at = np.random.default_rng(0).choice(seen.size, PLACES, replace=False)
    parity = {"model/in/pixels": pictures, "model/out/logits": logits(pictures)}
    parity |= {"maps/in/pixels": wide, "maps/out/logits": logits(wide), "maps/at/maps": at, "maps/values/maps": seen.ravel()[at]}
    np.savez_compressed(MODEL / "parity.npz", **parity)
    stored = {}
    for name, photo in photos().items():
        stored[f"{name}/cut"], stored[f"{name}/whole"] = logits(np.stack([cut(photo), crop(photo)]))
    np.savez_compressed(HERE / "efficientnet-lite0.npz", **stored)


if __name__ == "__main__":
    main(*sys.argv[1:])
