"""ResNet (arXiv:1512.03385) in the form v1.5, with batch norms and their running moments.

microsoft/resnet-18 to resnet-152 are of this kind. Stems are the large one there, and shortcuts
projections: a CIFAR model has no place in it.
"""

import re
from typing import Any

from research.interop import Family, Shape, Tensor
from research.interop.bert import dense

CONVOLUTIONS = {"basic": 2, "bottleneck": 3}
MOMENTS = dict(weight="scale", bias="bias", running_mean="mean", running_var="variance")


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture="ResNetForImageClassification",
        prefix="resnet.",
        # torch's epsilon, which no config says.
        model=dict(
            name="resnet", stem="large", shortcut="projection", norm="batch", norm_epsilon=1e-5
        ),
        fields=(
            ("num_channels", "channels", 3),
            ("embedding_size", "stem_width", 64),
            ("hidden_sizes", "widths", (256, 512, 1024, 2048)),
            ("depths", "blocks", (3, 4, 6, 3)),
            ("num_labels", "labels", 2),
        ),
        choices={"layer_type": ("block", {"bottleneck": "bottleneck", "basic": "basic"})},
        fixed={
            "hidden_act": ("relu",),
            "downsample_in_bottleneck": (False,),  # True is v1: the stride before the 3x3
            "downsample_in_first_stage": (False,),
        },
        harmless=("out_features", "out_indices", "stage_names"),
        least=dict(channels=1, stem_width=1, widths=1, blocks=1, labels=1),
        tensors=tensors,
        complete=lambda model, shapes: model,
        settle=settle,
        pixels=True,
        ignored=r"num_batches_tracked$",
        read=read,
        write=write,
    )


def read(config: dict) -> dict:
    """Returns the config with tuples, and the number of labels, of which files have the names."""
    for key in ("hidden_sizes", "depths"):
        if isinstance(config.get(key), list):
            config[key] = tuple(config[key])
    widths, blocks = config.get("hidden_sizes", (0,) * 4), config.get("depths", (0,) * 4)
    if len(widths) != len(blocks):
        raise ArithmeticError(f"hidden_sizes are {len(widths)}, depths {len(blocks)}")
    if isinstance(names := config.get("id2label"), dict):
        config.setdefault("num_labels", len(names))
    return config


def write(config: dict) -> dict:
    """Returns the config with names for the labels, whose number is that of the names."""
    labels = config.pop("num_labels")
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return config


def settle(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with what its depth decides, as the parameters show it."""
    size, _, channels, stem_width = shapes.get("stem/kernel", (0, 0, 0, 0))
    places = {match.groups() for path in shapes if (match := re.match(r"stages/(\d+)/(\d+)", path))}
    stages = sorted({int(stage) for stage, _ in places})
    blocks = tuple(sum(int(stage) == one for stage, _ in places) for one in stages)
    is_deep = "stages/0/0/conv3/kernel" in shapes
    last = "conv3" if is_deep else "conv2"
    found = dict(
        block="bottleneck" if is_deep else "basic",
        blocks=blocks,
        widths=tuple(shapes[f"stages/{i}/0/{last}/kernel"][-1] for i in stages),
        stem="large" if size == 7 else "small",
        stem_width=stem_width,
        channels=channels,
        labels=shapes.get("classifier_bias", (0,))[0],
        # A network that needs none of either may have the name of both.
        shortcut="projection" if any("projection" in path for path in shapes) else "padding",
    )
    if found["shortcut"] == "padding" and len(stages) == 1:
        found["shortcut"] = "projection"
    return model | found


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    width, count = model["stem_width"], CONVOLUTIONS[model["block"]]
    table = _convolution("resnet.embedder.embedder", "stem", 7, model["channels"], width)
    for stage, (blocks, outs) in enumerate(zip(model["blocks"], model["widths"], strict=False)):
        for block in range(blocks):
            theirs, ours = (
                f"resnet.encoder.stages.{stage}.layers.{block}",
                f"stages/{stage}/{block}",
            )
            inner = outs // 4 if count == 3 else outs
            sizes = (1, 3, 1) if count == 3 else (3, 3)
            channels = (width, inner, inner, outs) if count == 3 else (width, outs, outs)
            for i in range(count):
                at, name = f"{theirs}.layer.{i}", f"{ours}/conv{i + 1}"
                table += _convolution(at, name, sizes[i], channels[i], channels[i + 1])
            if block == 0 and (stage > 0 or width != outs):
                table += _convolution(f"{theirs}.shortcut", f"{ours}/projection", 1, width, outs)
            width = outs
    return table + dense("classifier.1", model["labels"], width, "classifier")


def _convolution(theirs: str, ours: str, size: int, ins: int, outs: int) -> list[Tensor]:
    kernel, norm = {f"{ours}/kernel": (size, size, ins, outs)}, f"{theirs}.normalization"
    return [
        Tensor(f"{theirs}.convolution.weight", (outs, ins, size, size), kernel, transpose=True),
        *(
            Tensor(f"{norm}.{x}", (outs,), {f"{ours}/norm/{y}": (outs,)})
            for x, y in MOMENTS.items()
        ),
        Tensor(f"{norm}.num_batches_tracked", (), {}),
    ]
