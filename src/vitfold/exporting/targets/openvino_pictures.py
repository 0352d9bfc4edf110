"""Preprocessing in OpenVINO's programs, by its `PrePostProcessor`."""

import importlib
from typing import Any

import numpy

from vitfold.exporting.pictures import Preparation

OPERATORS = "openvino.opset13"


def behind_preparation(model: Any, preparation: Preparation) -> Any:
    """The model of OpenVINO behind its preparation, which resizes in 8 bits as Pillow does."""
    library = importlib.import_module("openvino")
    process = library.preprocess.PrePostProcessor(model)
    step, layout = process.input(), library.Layout("NCHW")
    shape = library.PartialShape([model.input().partial_shape[0], -1, -1, len(preparation.mean)])
    step.tensor().set_element_type(library.Type.u8).set_layout(library.Layout("NHWC"))
    step.tensor().set_shape(shape)
    step.model().set_layout(layout)
    way = step.preprocess().convert_layout(layout)
    way = way.custom(lambda pictures: _cropped(_resized(pictures, preparation), preparation))
    way = way.convert_element_type(library.Type.f32)
    way.mean([255 * x for x in preparation.mean]).scale([255 * x for x in preparation.std])
    return process.build()


def preparation_alone(preparation: Preparation) -> Any:
    """The same without a model."""
    library, ops = (importlib.import_module(name) for name in ("openvino", OPERATORS))
    images = ops.parameter([-1, len(preparation.mean), *preparation.size], numpy.float32)
    model = library.Model([ops.convert(images, "f32")], [images])
    return behind_preparation(model, preparation)


def _resized(pictures: Any, preparation: Preparation) -> Any:
    """`[B, C, H, W]` in the size out of which the model's is cut."""
    ops = importlib.import_module(OPERATORS)
    size = ops.constant(numpy.array(preparation.resized))
    if preparation.keeps:
        sides = _sides(pictures)
        shorter = ops.reduce_min(sides, numpy.array([0]), keep_dims=True)
        size = ops.divide(ops.multiply(sides, size), shorter)
    return ops.interpolate(
        pictures,
        size,
        interpolation(preparation),
        "sizes",
        pads_begin=[0],
        pads_end=[0],
        cube_coeff=-0.5,
        axes=PLANE,
    ).output(0)


def interpolation(preparation: Preparation) -> str:
    """What OpenVINO calls the way in which Pillow resizes."""
    return f"{preparation.interpolation}_pillow"


def _cropped(pictures: Any, preparation: Preparation) -> Any:
    """The centre of `[B, C, H, W]`; half a pixel is rounded as torchvision does."""
    ops = importlib.import_module(OPERATORS)
    size = numpy.array(preparation.size)
    spare = ops.convert(ops.subtract(_sides(pictures), size), "f32")
    start = ops.convert(ops.round(ops.divide(spare, numpy.float32(2)), "half_to_even"), "i64")
    centre = ops.slice(pictures, start, ops.add(start, size), numpy.array([1, 1]), PLANE)
    return ops.reshape(centre, numpy.array([0, 0, *preparation.size]), special_zero=True).output(0)


def _sides(pictures: Any) -> Any:
    ops = importlib.import_module(OPERATORS)
    return ops.gather(ops.shape_of(pictures), PLANE, numpy.array(0))


PLANE = numpy.array([2, 3])
"""Height and width."""
