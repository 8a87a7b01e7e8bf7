"""The vision tokenizer: pixels to grids of codes and back (Emu3, arXiv:2409.18869, section 2.2).

Films are coded in independent clips of ``temporal_downsample`` frames, as the released scripts do: in one long pass
the codes of later clips would depend on earlier ones, and the released weights then reconstruct badly. A picture is a
clip of one repeated frame; its spatial encoder runs once, and only the first of its decoded frames is ever computed.

Legend of shapes: B pictures or films, N clips (for pictures N = B), T frames, t clips of a film, F frames of a clip,
H W pixels, h w codes, D channels of a latent.
"""

import torch
from torch import nn

from rhea.errors import InputError
from rhea.models.vision.blocks import CausalConv3d, TemporalResBlock
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.decoder import Decoder
from rhea.models.vision.encoder import Encoder
from rhea.models.vision.quantizer import Quantizer


class VisionTokenizer(nn.Module):
    """Encoder, quantizer and decoder under the released parameter names.

    ``tokenizer.quantize(latents)`` is the quantizer's forward: see ``Quantized``.
    """

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = CausalConv3d(config.latent_channels, config.embed_dim, kernel=(3, 1, 1))
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_channels, kernel=(3, 1, 1))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return codes: pictures [B, 3, H, W] to [B, h, w], films [B, T, 3, H, W] to [B, t, h, w].

        Pixels are in [-1, 1]. H and W must be multiples of the spatial factor and T of the temporal one, else
        InputError.
        """
        codes_Nhw = self.quantize.codes(self.encode_latents(pixels))
        return codes_Nhw if pixels.ndim == 4 else codes_Nhw.unflatten(0, (pixels.shape[0], -1))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return pixels, not clamped: [B, h, w] to pictures [B, 3, H, W], [B, t, h, w] to films [B, T, 3, H, W]."""
        if codes.ndim not in (3, 4):
            raise InputError(f"codes of shape {tuple(codes.shape)}: expected [B, h, w] or [B, t, h, w]")
        image = codes.ndim == 3
        entries_NDhw = self.quantize.lookup(codes if image else codes.flatten(0, 1))
        pixels = self.decode_latents(entries_NDhw, image=image)
        return pixels if image else pixels.unflatten(0, codes.shape[:2]).flatten(1, 2)

    def encode_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the latents that the quantizer sees, [N, D, h, w], one per picture or per clip (films flattened)."""
        clip = self.config.temporal_downsample
        self._check_pixels(pixels)
        if pixels.ndim == 4:
            spatial_NDhw = self.encoder.spatial(pixels)
            clips_NDFhw = spatial_NDhw.unsqueeze(2).expand(-1, -1, clip, -1, -1)
        else:
            spatial_NDhw = self.encoder.spatial(pixels.flatten(0, 1))
            clips_NDFhw = spatial_NDhw.unflatten(0, (-1, clip)).transpose(1, 2)
        return self.quant_conv(self.encoder.temporal(clips_NDFhw)).squeeze(2)

    def decode_latents(self, entries_NDhw: torch.Tensor, image: bool) -> torch.Tensor:
        """Return pixels of quantized latents: pictures [N, 3, H, W] or clips [N, F, 3, H, W]."""
        entries_ND1hw = entries_NDhw.unsqueeze(2)
        z_NDFhw, condition_NDFhw = self.decoder.temporal(self.post_quant_conv(entries_ND1hw), entries_ND1hw)
        if image:
            return self.decoder.spatial(z_NDFhw[:, :, 0], condition_NDFhw[:, :, 0])
        frames, conditions = (x.transpose(1, 2).flatten(0, 1) for x in (z_NDFhw, condition_NDFhw))
        return self.decoder.spatial(frames, conditions).unflatten(0, (len(entries_NDhw), -1))

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Keep the temporal norms on their running statistics also in training mode (see TemporalResBlock)."""
        for module in self.modules():
            if isinstance(module, TemporalResBlock):
                module.freeze_norm = frozen
                module.train(module.training)

    def _check_pixels(self, pixels: torch.Tensor) -> None:
        config = self.config
        if pixels.ndim not in (4, 5) or pixels.shape[-3] != config.in_channels:
            raise InputError(f"pixels of shape {tuple(pixels.shape)}: expected [B, 3, H, W] or [B, T, 3, H, W]")
        height, width = pixels.shape[-2:]
        if not height or not width or height % config.spatial_factor or width % config.spatial_factor:
            raise InputError(f"pixels {height} x {width}: both sides must be multiples of {config.spatial_factor}")
        if pixels.ndim == 5 and (not pixels.shape[1] or pixels.shape[1] % config.temporal_downsample):
            raise InputError(f"{pixels.shape[1]} frames: expected a multiple of {config.temporal_downsample}")
