"""The contract of a foreign ONNX file: what it expects and what it answers, as the [adapter] table of a model.toml says it.

service.export.adopt rewrites the file by it into a graph of the house: uint8 RGB pixels in, and out what the task reads.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Decoder = Literal[
    "yolov2",
    "yolov3",
    "yolov5",
    "yolov8",
    "yolox",
    "corners-scores",
    "end-to-end",
    "end-to-end-centres",
    "detr",
    "detr-decoded",
    "nanodet",
    "nms-indices",
    "nms-rows",
    "efficient-nms",
    "boxes-labels-scores",
    "logits",
    "probabilities",
    "logits-or-probabilities",
    "embedding",
    "picture",
    "picture-and-style",
]
"""How the outputs are read.

yolov2, yolov3       raw heads by anchors, one output a stride: [n, a * (5 + C), h, w], [n, a, h, w, 5 + C], [n, h, w, a, 5 + C] or
                     [n, h, w, a * (5 + C)]; YOLOv2's classes are a softmax; YOLOv4 reads as yolov3
yolov5               decoded [n, k, 5 + C]: cx, cy, w, h, objectness, classes; YOLOv7 and decoded YOLOX too
yolov8               decoded [n, 4 + C, k] or [n, k, 4 + C]: cx, cy, w, h, classes; YOLOv9, 11 and 12 too
yolox                raw grid [n, k, 5 + C], xy and wh still to be decoded by strides
corners-scores       boxes [n, k, 4] as corners and scores [n, k, C] of all places, before NMS: UltraFace
end-to-end           [n, k, 6]: corners, score, class; YOLOv10, YOLO26, exports with NMS inside
end-to-end-centres   [n, k, 6]: cx, cy, w, h, score, class; RT-DETR as Ultralytics exports it from 8.4 on
detr                 logits [n, k, C] and boxes [n, k, 4] as cx, cy, w, h of 0..1: RT-DETR, D-FINE, RF-DETR
detr-decoded         labels [n, k], boxes [n, k, 4] as corners and scores [n, k], with a second input of the picture's size
nanodet              per stride class scores [n, k, C] and distributions of the four distances [n, k, 4 * bins]; of NanoDet-Plus
                     both in one output [n, k, C + 4 * bins]
nms-indices          boxes [n, k, 4] as y, x, y, x, scores [n, C, k] and indices [m, 3] of those that NMS left
nms-rows             [m, 7]: picture, corners, class, score, as YOLOv7's end-to-end export has it
efficient-nms        counts [n, 1], boxes [n, k, 4], scores [n, k], classes [n, k]
boxes-labels-scores  boxes [k, 4] as corners, labels [k], scores [k] of one picture, as torchvision exports them
"""

DETECTORS: frozenset[str] = frozenset(
    {
        *("yolov2", "yolov3", "yolov5", "yolov8", "yolox", "corners-scores", "end-to-end", "detr", "detr-decoded", "nanodet"),
        *("end-to-end-centres", "nms-indices", "nms-rows", "efficient-nms", "boxes-labels-scores"),
    }
)
WITHOUT_NMS: frozenset[str] = frozenset(
    {
        *("end-to-end", "end-to-end-centres", "detr", "detr-decoded", "nms-indices", "nms-rows", "efficient-nms"),
        "boxes-labels-scores",
    }
)
"""Decoders of what needs no NMS any more."""


class Contract(BaseModel):
    """What one foreign ONNX file expects and answers.

    The picture input gets (pixels * scale - mean) / std, pixels being 0..255, in the order of its own channels (`color`); its dtype
    is the file's own. GRAY is one channel: 0.299 R + 0.587 G + 0.114 B.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: Decoder
    input: str | None = Field(None, description="name of the picture input; none: the first one")
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = Field(None, description="height and width that the graph is to have; none: it stays free")
    style_size: tuple[int, int] | None = Field(
        None, description="picture-and-style: height and width of the style, where they are not those of the picture"
    )
    outputs: tuple[str, ...] = Field(
        (), description="the outputs that the decoder reads, in its order; none: all, in the graph's order"
    )
    classes: int = Field(0, ge=0, description="how many classes; 0 where there are none")
    first_class: int = Field(0, ge=0, description="outputs before the first class, as a background, that are left out")
    activation: Literal["none", "sigmoid", "softmax"] = Field("none", description="what the scores still need")
    boxes: Literal["pixels", "unit"] = Field(
        "pixels", description="of what the decoded coordinates are: input pixels, or 0..1 of it"
    )
    y_first: bool = Field(False, description="efficient-nms: corners come as y, x, y, x, as TensorFlow has them")
    picture_range: Literal["input", "unit", "byte", "signed"] = Field(
        "input", description="of a painted picture: as the input's, 0..1, 0..255 or -1..1"
    )
    anchors: tuple[tuple[float, ...], ...] = Field((), description="for each head: width, height, ... in input pixels")
    strides: tuple[int, ...] = Field((), description="of the heads, in the order of `outputs`; pixels")
    head: Literal["v3", "v5"] = Field(
        "v3",
        description="raw heads: of YOLOv3 and 4, size = exp(t) * anchor, or of YOLOv5 and 7, size = (2 * sigmoid(t))^2 * anchor",
    )
    xy_scale: tuple[float, ...] = Field((), description="raw heads: for each how far sigmoid(t) reaches; none: 1 (v3) or 2 (v5)")
    probabilities: bool = Field(False, description="raw heads: objectness and classes are behind their sigmoid already")
    free_batch: bool = Field(True, description="may the leading axis be freed where the exporter fixed it? Tried when it was added")

    @model_validator(mode="after")
    def _channels(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in {1, 1 if self.color == "GRAY" else 3}:
                raise ValueError(f"{name} needs one number, or one for each channel of {self.color}")
        if not all(self.std):
            raise ValueError("std must not be 0")
        return self

    @property
    def needs_nms(self) -> bool:
        return self.decoder in DETECTORS - WITHOUT_NMS
