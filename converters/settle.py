"""Random networks made fit for measuring: parameters and statistics under which pictures matter."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from converters.pictures import generated, photos
from converters.refs.base import Source, run
from converters.refs.grammar import SEED

# A parameter whose values lie closer together than this was initialised to a constant.
ALL_ALIKE = 1e-3

# The smallest settled variance of a channel, over the mean of its layer's.
LEAST_VARIANCE = 0.1


def settle(source: Source) -> None:
    """Give a random network parameters and BatchNorm statistics under which its pictures matter.

    The default initialisation has zero gammas and zero attention biases, which let converters fold
    whole branches away, and statistics that make the output nearly constant: sizes, latencies and
    errors would mean nothing.
    """
    module, pre = source.module.eval(), source.preprocessing
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, value in module.named_parameters():
            is_vector = value.numel() == max(value.shape, default=1)
            if value.dim() != 1 and float(value.max() - value.min()) > ALL_ALIKE:
                continue
            if value.dim() == 1 and name.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
            elif is_vector:  # gammas and layer scales, also as (C, 1, 1)
                value.copy_(torch.rand(value.shape, generator=draw) * 0.6 + 0.4)
            else:  # tables of attention biases, and weights that start at zero
                value.copy_(torch.randn(value.shape, generator=draw) * value[0].numel() ** -0.5)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [n.momentum for n in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the statistics of the one batch
        norm.train()
        if norm.affine:
            # More of each channel above zero, where ReLU is straight. Where every layer bends at
            # its mean, float32 rounding grows from each to the next, and behind very many it is
            # all there is.
            norm.bias.data.add_(0.5 * norm.weight.data)
    mean = torch.tensor(pre.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(pre.std).reshape(1, 3, 1, 1)
    # One batch: the averages of two would leave out how far photos and drawn pictures are apart.
    drawn = generated(3, pre.height, pre.width, seed=1)
    batch = np.concatenate([photos(pre.height, pre.width)[:3], drawn])
    x_BCHW = torch.from_numpy(batch).permute(0, 3, 1, 2)
    run(source.ref, module, (x_BCHW - mean) / std)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        if norm.running_var is not None:
            # A channel that these few pictures hardly move would be blown up by the next one, layer
            # after layer, until float32 is noise.
            norm.running_var.clamp_(min=LEAST_VARIANCE * float(norm.running_var.mean()))
