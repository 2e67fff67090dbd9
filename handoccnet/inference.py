"""A trained network made fast without changing what it computes: :func:`prepare`.

Batch norms are folded into convolutions, smoothing and averaging become one convolution, what is never used is dropped,
channels are last in memory, and the trunk may run in half precision. Heat maps, rotations and MANO stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handoccnet.attention import AttentionLayer
from handoccnet.backbone import ConvNorm
from handoccnet.model import HandOccNet
from shared.precision import Precision, choose_dtype


def folded(unit: ConvNorm) -> nn.Conv2d:
    """The convolution that computes what a convolution and its batch norm do in evaluation mode."""
    conv, norm = unit.conv, unit.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    result = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, kernel // 2).to(conv.weight)
    result.weight.data = (conv.weight * scale[:, None, None, None]).detach()
    result.bias = nn.Parameter((bias * scale + norm.bias).detach())
    return result


class PooledSmoothing(nn.Conv2d):
    """Smoothing and averaging as one 4x4 convolution of stride 2.

    In float32 on contiguous memory: with torch 2.13 on AVX-512, its sums of 4096 products round four times less there
    than with the channels last, in the same time, and FIT's gate magnifies what is lost here.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32 or input.device.type != "cpu":
            return super().forward(input)
        out = F.conv2d(input.contiguous(), self.weight.contiguous(), self.bias, stride=2, padding=1)
        return out.contiguous(memory_format=torch.channels_last)


def simplify(network: HandOccNet) -> HandOccNet:
    """A copy in evaluation mode with folded norms, one smoothing convolution and no unused layers; float32 values as
    before up to rounding. It has another state dict and cannot be trained on."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, ConvNorm):
            module.conv, module.norm = folded(module), nn.Identity()
    backbone = network.backbone
    channels = backbone.smooth.out_channels
    backbone.pooled = PooledSmoothing(channels, channels, 4, stride=2, padding=1).to(backbone.smooth.weight)
    backbone.pooled.weight.data = backbone.pooling_kernel()
    backbone.pooled.bias = backbone.smooth.bias
    del backbone.smooth, backbone.unused_smooth
    return network.requires_grad_(False)


class FastNetwork(nn.Module):
    """A simplified network in ``dtype``: takes and gives what :class:`HandOccNet` does, in float32."""

    def __init__(self, network: HandOccNet, dtype: torch.dtype, compile_network: bool = False) -> None:
        super().__init__()
        self.network, self.dtype, self.image_size = network, dtype, network.image_size
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert network.backbone.pooled is not None
        if dtype == torch.float32:
            network.backbone.pooled.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if dtype != torch.float32:
            gates = [layer for layer in network.modules() if isinstance(layer, AttentionLayer) and layer.gated]
            exact = [(layer.gate_query, layer.gate_key) for layer in gates]
            for layer in gates:
                del layer.gate_query, layer.gate_key
            for part in (network.backbone, network.fit, network.set, network.head, network.encoder):
                part.to(dtype)
            for layer, (query, key) in zip(gates, exact, strict=True):
                layer.gate_query, layer.gate_key = query, key
            network.head.score.float()
            network.head.sharpness.data = network.head.sharpness.data.float()
            network.head.grid = network.head.grid.float()
        self.run: nn.Module | Callable[..., dict[str, Tensor]] = network
        if compile_network:  # frozen weights are rearranged once, for the processor's products
            self.run = torch.compile(network, dynamic=False, options={"freezing": True})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """As :meth:`HandOccNet.forward`."""
        out: dict[str, Tensor] = self.run(image.to(self.dtype).contiguous(memory_format=torch.channels_last))
        out["gate"] = out["gate"].float()
        return out


def prepare(
    network: HandOccNet,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    compile_network: bool = False,
) -> FastNetwork:
    """A copy of a trained network for inference; the original is not touched.

    Args:
        network: any device.
        device: where it will run.
        precision: of everything before the heat maps and the hand.
        compile_network: through ``torch.compile`` with frozen weights; the first call with each shape takes a minute
            and must be under ``no_grad`` or ``inference_mode``.

    Returns:
        :class:`FastNetwork`; call it under ``torch.inference_mode()``.

    Raises:
        DataError: a precision that is none of the above.
    """
    device = torch.device(device)
    return FastNetwork(simplify(network).to(device), choose_dtype(precision, device), compile_network).eval()
