"""The one convolution of images through which every model contracts, chosen by precision.

    y_bhwo = convolve(x_bhwi, w_hwio, "bf16", stride=2)

Images are NHWC and kernels HWIO, the layout of TPUs and of tensor cores. Precisions are those of
matmul.py, but for int8 and fp8.
"""

import jax

from research.arguments import InputError, Precision
from research.kernels.matmul import compute_dtype, exactness

Array = jax.Array


def convolve(x_bhwi: Array, w_hwio: Array, precision: Precision, stride: int = 1) -> Array:
    """Returns the cross-correlation (b, ceil(h / stride), ceil(w / stride), o) with an odd kernel,
    in `compute_dtype(precision)`, accumulated in float32 as einsum of matmul.py is.

    Zeros are padded alike on all sides, as torch does. "SAME" would pad more at the end where the
    stride is 2: other sums, with which published weights do not compute what they were trained for.
    Raises InputError for int8 and fp8.
    """
    refuse_8_bits(precision)
    dtype = compute_dtype(precision)
    return jax.lax.conv_general_dilated(
        x_bhwi.astype(dtype),
        w_hwio.astype(dtype),
        window_strides=(stride, stride),
        padding=[(size // 2, size // 2) for size in w_hwio.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=exactness(dtype),
    )


def refuse_8_bits(precision: Precision) -> None:
    """Raises InputError for int8 and fp8: the gradients of a convolution are convolutions of other
    layouts, for which XLA has 8-bit kernels on few devices, and a model that multiplies nothing but
    its last layer in 8 bits would carry a name that it does not deserve."""
    if precision in ("int8", "fp8"):
        raise InputError(f"config.precision={precision}: convolutions have no 8 bits; use bf16")
