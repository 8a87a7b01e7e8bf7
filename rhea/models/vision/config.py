"""The size of a vision tokenizer; the defaults are the released Emu3 one (270,740,287 parameters)."""

from dataclasses import dataclass

from rhea.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VisionTokenizerConfig:
    """Widths and depths of encoder and decoder, and the codebook."""

    base_channels: int = 256
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channels of each level in units of base_channels; every level but the last halves height and width."""
    num_res_blocks: int = 2
    """Residual blocks per encoder level; a decoder level has one more."""
    attention_levels: tuple[int, ...] = (3,)
    """Levels whose residual blocks are each followed by attention."""
    latent_channels: int = 4
    embed_dim: int = 4
    codebook_size: int = 32768
    in_channels: int = 3
    out_channels: int = 3
    temporal_downsample: int = 4
    """Frames per latent frame, a power of two; clips of this length are coded independently."""
    temporal_res_blocks: int = 2
    norm_groups: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.temporal_downsample < 1 or self.temporal_downsample & (self.temporal_downsample - 1):
            raise InputError(f"temporal_downsample must be a power of two, got {self.temporal_downsample}")
        if self.base_channels % self.norm_groups:
            raise InputError(f"base_channels {self.base_channels} is not a multiple of norm_groups {self.norm_groups}")
        if self.latent_channels != self.embed_dim:
            # The decoder sends both through one temporal stack, which fixes a common width.
            raise InputError(f"latent_channels {self.latent_channels} must equal embed_dim {self.embed_dim}")

    @property
    def num_levels(self) -> int:
        """Number of resolutions."""
        return len(self.channel_multipliers)

    @property
    def spatial_factor(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (self.num_levels - 1)

    @property
    def temporal_levels(self) -> int:
        """Number of times the frame rate is halved."""
        return self.temporal_downsample.bit_length() - 1

    def channels(self, level: int) -> int:
        """Return the width of one level."""
        return self.base_channels * self.channel_multipliers[level]
