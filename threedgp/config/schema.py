"""The typed profile: every hyper-parameter of data, camera, networks, losses and training.

Defaults are those of 3DGP (arXiv 2303.01416, Sec. 4 and App. B) at 256x256 with the wide uniform camera prior, so a
profile file only names what it changes. Unknown keys, wrong types and numbers out of range are refused;
`threedgp.config.rules` refuses combinations that cannot work. A profile holds what was chosen: values that follow from
others unless they are chosen (null here) are properties of `Profile`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Kimg = Annotated[float, Field(ge=0, le=1e9)]  # thousands of real images
Span = Annotated[float, Field(gt=0, le=1e9)]  # the same, and never 0
Weight = Annotated[float, Field(ge=0, le=1e9)]
Length = Annotated[float, Field(gt=0, le=1e6)]  # world units
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=1 << 17)]  # channels or features
Layers = Annotated[int, Field(ge=0, le=64)]
Side = Annotated[int, Field(ge=4, le=4096)]  # pixels
Name = Annotated[str, Field(max_length=255, pattern=r"\A[^/\x00-\x1f\x7f]+\Z")]

NETWORK_NAME = r"\A(?!.*\.\.)[A-Za-z0-9][\w.:/-]*\Z"


class Section(BaseModel):
    """A group of settings: strict types, finite numbers, no unknown keys, read-only once built."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=False,
        allow_inf_nan=False,
        str_max_length=1000,
        regex_engine="python-re",
    )


# ---------------------------------------------------------------------------------------------------------------- data


class ImageAugmentConfig(Section):
    """Simple augmentation of whole training images: one warp for image and depth, brightness for the image only."""

    where: Literal["none", "reals", "both"] = Field(
        "none", description="which images: augmented reals alone leak into the generator, both does not"
    )
    probability: Share = Field(0.5, description="of each transform, independently")
    rotation: float = Field(10.0, ge=0, le=180, description="largest angle in degrees")
    shift: float = Field(0.0625, ge=0, le=0.5, description="largest shift as a fraction of the side")
    flip: bool = Field(True, description="horizontal flip; skipped when data.mirror already doubles the set")
    brightness: Share = Field(0.2, description="largest change of brightness, image range 0..1")


class DataConfig(Section):
    """The training set under data/<dataset>/<resolution>."""

    dataset: Name | None = Field(None, description="folder under data/; null: the only one there")
    resolution: int = Field(256, ge=8, le=4096, description="side of the square images in pixels, a power of two")
    num_classes: int = Field(0, ge=0, le=1_000_000, description="classes of the labels; 0: unconditional")
    mirror: bool = Field(True, description="also train on every image flipped left-right, which doubles the set")
    max_images: int | None = Field(
        None, ge=1, le=10**12, description="train on a seeded random subset of this size; null: on all"
    )
    embedder: str = Field(
        "resnet50",
        pattern=NETWORK_NAME,
        description="name of the embeddings that distillation predicts",
    )
    embedding_dim: Width = Field(2048, description="their size; resnet50 has 2048 features")
    augment: ImageAugmentConfig = ImageAugmentConfig()


# -------------------------------------------------------------------------------------------------------------- camera


class RangeConfig(Section):
    """Bounds and moments of one camera number; which of them count depends on the distribution."""

    min: float | None = Field(None, ge=-1e6, le=1e6, description="lower bound")
    max: float | None = Field(None, ge=-1e6, le=1e6, description="upper bound")
    mean: float | None = Field(None, ge=-1e6, le=1e6, description="mean of a (truncated) normal distribution")
    std: float | None = Field(None, ge=0, le=1e6, description="its standard deviation")


class ScalarPriorConfig(RangeConfig):
    """Prior of field of view (degrees) or a radius (world units)."""

    dist: Literal["uniform", "truncnorm", "normal"] = Field(
        "uniform", description="distribution; normal needs std 0, which makes it a constant"
    )


AngleDistribution = Literal["uniform", "normal", "truncnorm", "hybrid", "spherical_uniform", "custom"]


class OriginPriorConfig(Section):
    """Prior of the camera position's yaw and pitch in radians; pitch pi/2 is the equator."""

    dist: AngleDistribution = Field("uniform", description="distribution of both; custom: angles from dataset.json")
    yaw: RangeConfig = RangeConfig(min=-1.57, max=1.57)
    pitch: RangeConfig = RangeConfig(min=0.785398163, max=2.35619449)


class LookAtPriorConfig(Section):
    """Prior of the look-at point inside a ball about the world origin (ball-in-sphere camera)."""

    dist: AngleDistribution = Field("spherical_uniform", description="distribution of the direction from the origin")
    yaw: RangeConfig = RangeConfig(min=-3.14159265, max=3.14159265)
    pitch: RangeConfig = RangeConfig(min=0.0, max=3.14159265)
    radius: ScalarPriorConfig = ScalarPriorConfig(dist="uniform", min=0.0, max=0.2)


class CameraConfig(Section):
    """Camera prior, ray interval and scene cube (3DGP Sec. 3.3)."""

    near: Length = Field(0.75, description="start of the rays, world units from the camera")
    far: Length = Field(1.25, description="end of the rays")
    cube_scale: Length = Field(0.5, description="half side of the scene cube, which the tri-planes cover")
    origin: OriginPriorConfig = OriginPriorConfig()
    fov: ScalarPriorConfig = ScalarPriorConfig(dist="uniform", min=10.0, max=45.0)
    radius: ScalarPriorConfig = ScalarPriorConfig(dist="normal", mean=1.0, std=0.0)
    look_at: LookAtPriorConfig = LookAtPriorConfig()
    data_mean: list[Annotated[float, Field(ge=-1e6, le=1e6)]] | None = Field(
        None,
        min_length=5,
        max_length=5,
        description="the data's mean yaw, pitch, roll, fov, radius, which imports bring for dist custom and hybrid",
    )
    validate_viewing_frustum: bool = Field(False, description="refuse a prior whose rays leave the scene cube")


# ------------------------------------------------------------------------------------------------------------ networks


class MLPConfig(Section):
    """The field's MLP on top of the tri-plane features."""

    layers: int = Field(2, ge=2, le=64, description="linear layers")
    hidden_dim: Width = Field(64, description="width of the hidden layers")


class TriPlaneConfig(Section):
    """Three feature planes per image (EG3D, arXiv 2112.07945, Sec. 4.1)."""

    resolution: Side = Field(512, description="side of the planes, a power of two; finer than the images pays")
    features: Width = Field(32, description="channels of each plane")
    mlp: MLPConfig = MLPConfig()


class DensityNoiseConfig(Section):
    """Gaussian noise on raw densities, fading out early in training; it keeps the field from going empty."""

    init_std: float = Field(1.0, ge=0, le=1000, description="standard deviation at the start; 0: no noise")
    anneal_kimg: Kimg = Field(5000.0, description="when it has faded out")


class CameraConditioningConfig(Section):
    """Feed the camera angles to a mapping network."""

    enabled: bool = Field(False, description="off in 3DGP, whose cameras are learned")
    drop_probability: Share = Field(0.0, description="how often the angles are hidden")
    spoof_probability: Share = Field(0.5, description="generator only: swapped angles, falling from 1 to this")


class GeneratorConfig(Section):
    """Mapping network, tri-plane backbone and renderer."""

    z_dim: Width = Field(512, description="size of the latent code")
    w_dim: Width = Field(512, description="size of the style code")
    cbase: int = Field(32768, ge=1, le=1 << 24, description="channels at resolution r: min(cbase * fmaps / r, cmax)")
    cmax: Width = Field(512, description="most channels of any layer")
    fmaps: float = Field(1.0, gt=0, le=64, description="factor on cbase")
    map_depth: int = Field(2, ge=1, le=64, description="layers of the mapping network; more is unstable in 3D")
    architecture: Literal["skip", "orig", "resnet"] = Field("skip", description="how the layers' outputs are joined")
    use_noise: bool = Field(True, description="learned per-pixel noise in every layer of the backbone")
    clamp_activations: bool = Field(
        False, description="clamp at 256, for weights that were trained so; `precision` says how it computes"
    )
    tri_plane: TriPlaneConfig = TriPlaneConfig()
    ray_steps: int = Field(32, ge=4, le=4096, description="coarse samples per ray, and as many fine ones")
    ray_jitter: Literal["ray", "stratified", "image", "none"] = Field(
        "ray",
        description="samples shift at random on every ray by itself (stratified: those of the second pass too stay "
        "apart), on all rays of an image alike, or never",
    )
    marcher: Literal["classical", "mip"] = Field("classical", description="quadrature: at samples, or between them")
    clamp_mode: Literal["softplus", "relu"] = Field("softplus", description="makes raw densities positive")
    density_bias: float = Field(0.0, ge=-1000, le=1000, description="added to raw densities")
    use_inf_depth: bool = Field(True, description="the last sample of a ray reaches to infinity: no holes")
    use_full_box: bool = Field(False, description="rays run through the whole scene cube instead of near..far")
    white_back: bool = Field(False, description="white behind whatever rays pass through")
    last_back: bool = Field(False, description="the last sample takes all weight that is left")
    chunk_rays: int = Field(
        16384, ge=1, le=1 << 30, description="rays rendered at once outside training: bounds the memory"
    )
    density_noise: DensityNoiseConfig = DensityNoiseConfig()
    camera_conditioning: CameraConditioningConfig = CameraConditioningConfig()


class DepthAdaptorConfig(Section):
    """Turns rendered depth into what a monocular estimator would say (3DGP Sec. 3.2)."""

    kernel_size: int = Field(5, ge=1, le=63, description="of its convolutions, odd")
    hidden_dim: Width = Field(64, description="channels of its hidden layers")
    layers: Layers = Field(3, description="hidden layers; 0: only the linear normalisation")
    out_strategy: Literal["random", "last", "mean"] = Field("random", description="which layer's output is used")
    selection_start_p: Share = Field(0.1, description="probability of the raw depth at the end of the annealing")
    anneal_kimg: Kimg = Field(10000.0, description="from equal probabilities of all layers to those at the end")
    near_plane_offset_max_fraction: Share = Field(
        0.25, description="how far the learned near plane of the normalisation may move, as a share of near..far"
    )
    near_plane_offset_bias: float = Field(-3.0, ge=-1000, le=1000, description="where it starts: before the sigmoid")


class AdjustConfig(Section):
    """Which camera numbers the camera adaptor may move."""

    angles: bool = Field(True, description="yaw and pitch")
    radius: bool = Field(False, description="distance; what it changes, the field of view can change too")
    fov: bool = Field(True, description="field of view")
    look_at: bool = Field(True, description="look-at point")


class CameraAdaptorConfig(Section):
    """Learns the camera distribution from the prior (3DGP Sec. 3.3)."""

    hidden_dim: Width = Field(256, description="width of its layers")
    embed_dim: Width = Field(16, description="size of the class embedding")
    lr_multiplier: float = Field(0.1, gt=0, le=1000, description="learning rate relative to the generator's")
    residual: bool = Field(False, description="predict the change instead of the camera")
    adjust: AdjustConfig = AdjustConfig()


class DiscriminatorConfig(Section):
    """Patch-wise, hyper-modulated discriminator (EpiGRAF, arXiv 2206.10535, Sec. 3.2)."""

    cbase: int = Field(32768, ge=1, le=1 << 24, description="channels at resolution r: min(cbase * fmaps / r, cmax)")
    cmax: Width = Field(512, description="most channels of any layer")
    fmaps: float = Field(1.0, gt=0, le=64, description="factor on cbase")
    hyper_mod: bool = Field(True, description="scale and offset of a patch modulate its layers")
    additional_start_blocks: int | None = Field(
        None, ge=0, le=10, description="blocks before the first one that halves; null: log2(resolution / patch)"
    )
    mbstd_group_size: int | None = Field(
        4, ge=1, le=1_000_000, description="images compared with one another; null: the whole micro-batch"
    )
    clamp_activations: bool = Field(True, description="clamp at 256, as the published weights were trained")
    camera_conditioning: CameraConditioningConfig = CameraConditioningConfig()


class FeatureDiscriminatorConfig(Section):
    """A second discriminator that sees colours by a frozen network's features (Projected GANs, arXiv 2111.01007)."""

    weight: Weight = Field(0.0, description="of its loss beside the first discriminator's; 0: off, as published")
    network: str = Field("tf_efficientnet_lite0", pattern=NETWORK_NAME, description="timm network, frozen")
    stages: list[Layers] = Field(default=[1, 2, 3, 4], min_length=1, max_length=16, description="its feature maps")
    input_size: int = Field(64, ge=32, le=1024, description="side in pixels to which it is shown images")
    augment: bool = Field(False, description="change colours, place and parts of what it sees (DiffAugment)")
    channels: Width = Field(64, description="of the randomly mixed maps")
    width: Width = Field(64, description="channels of the heads")


class ModelConfig(Section):
    """The networks."""

    kind: Literal["3dgp", "epigraf", "stylegan2"] = Field("3dgp", description="which generator")
    generator: GeneratorConfig = GeneratorConfig()
    depth_adaptor: DepthAdaptorConfig = DepthAdaptorConfig()
    camera_adaptor: CameraAdaptorConfig = CameraAdaptorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    feature_discriminator: FeatureDiscriminatorConfig = FeatureDiscriminatorConfig()


# -------------------------------------------------------------------------------------------------------------- losses


class PathLengthConfig(Section):
    """StyleGAN2's path-length regulariser (arXiv 1912.04958, Sec. 3.2)."""

    weight: Weight = Field(0.0, description="2 in StyleGAN2; 0: off, as in 3DGP")
    start_kimg: Kimg = Field(0.0, description="when it begins")
    interval: Count = Field(4, description="iterations between its lazy steps")


class BlurConfig(Section):
    """Blur what the discriminator sees at the start of training."""

    init_sigma: float = Field(10.0, ge=0, le=1000, description="in pixels; 0: no blur")
    fade_kimg: float = Field(200.0, ge=0, le=1000, description="when it has faded out")


class DistillationConfig(Section):
    """The discriminator predicts an image network's features of real images (3DGP Sec. 3.4)."""

    weight: Weight = Field(1.0, description="at the start; 0: off, and no embeddings are needed")
    anneal_kimg: Span = Field(100000.0, description="when it has faded out")
    distance: Literal["l2", "kl"] = Field("l2", description="between predicted and given features")


class TransportConfig(Section):
    """Squared transport distance between posterior and prior cameras."""

    enabled: bool = Field(True, description="more stable than the paper's gradient penalty")
    anneal_kimg: Kimg = Field(10000.0, description="the weights grow from 0 for this long")
    num_samples: int = Field(64, ge=2, le=1_000_000, description="cameras compared an iteration")
    origin: Weight = Field(2.0, description="weight of the angles")
    radius: Weight = Field(0.0, description="weight of the distance")
    fov: Weight = Field(1e-4, description="weight of the field of view")
    look_at: Weight = Field(1e-4, description="weight of the look-at point")


class GradientPenaltyConfig(Section):
    """The paper's camera regulariser |g| + 1/|g| on the adaptor's own derivatives (3DGP Eq. 5)."""

    enabled: bool = Field(False, description="instead of, or beside, the transport distance")
    num_samples: Count = Field(256, description="cameras an iteration")
    origin: Weight = Field(0.3, description="weight of the angles")
    radius: Weight = Field(0.0, description="weight of the distance")
    fov: Weight = Field(0.03, description="weight of the field of view")
    look_at: Weight = Field(0.003, description="weight of the look-at point")


class ForceMeanConfig(Section):
    """Keep the mean of the posterior angles at the prior's centre."""

    weight: Weight = Field(10.0, description="0: off")
    num_samples: Count = Field(256, description="cameras an iteration")


class CameraRegularizerConfig(Section):
    """Regularisers of the learned camera distribution; any subset."""

    emd: TransportConfig = TransportConfig()
    gradient_penalty: GradientPenaltyConfig = GradientPenaltyConfig()
    force_mean: ForceMeanConfig = ForceMeanConfig()


class LossConfig(Section):
    """Adversarial loss and everything added to it."""

    adversarial: Literal["non_saturating", "hinge", "relativistic"] = Field(
        "non_saturating", description="which loss; relativistic compares fakes with reals and adds R2"
    )
    gamma: Weight | None = Field(None, description="R1 weight; null: 0.0002 * resolution^2 / batch size")
    gamma_fake: Weight | None = Field(None, description="R2 weight of the relativistic loss; null: that of R1")
    regularization_interval: Count = Field(16, description="iterations between lazy R1 steps")
    logits_clamp: float = Field(1e7, gt=0, le=1e30, description="the discriminator's logits are clamped to +-this")
    style_mixing_probability: Share = Field(0.0, description="how often two latents share an image; 0.9 in StyleGAN2")
    path_length: PathLengthConfig = PathLengthConfig()
    blur: BlurConfig = BlurConfig()
    distillation: DistillationConfig = DistillationConfig()
    camera: CameraRegularizerConfig = CameraRegularizerConfig()


# ------------------------------------------------------------------------------------------------------------ training


class OptimizerConfig(Section):
    """Adam."""

    lr: float = Field(0.0025, gt=0, le=1000, description="learning rate")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.0, 0.99], min_length=2, max_length=2, description="decay of the two moments; no momentum suits GANs"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="L2 penalty on the weights")
    grad_clip: float | None = Field(
        None, gt=0, le=1e30, description="clip the network's gradient to this global norm; null: never"
    )


class PatchConfig(Section):
    """Patch-wise training (EpiGRAF Sec. 3.3); scales are fractions of the image side."""

    enabled: bool = Field(True, description="false: the discriminator sees whole images")
    conditioning: bool = Field(True, description="tell the discriminator scale and offset")
    resolution: Side = Field(64, description="side of a patch, a power of two up to data.resolution")
    distribution: Literal["beta", "uniform", "discrete_uniform"] = Field("beta", description="of the scales")
    max_scale: float = Field(1.0, gt=0, le=1, description="largest scale; 1: the whole image")
    min_scale: float | None = Field(
        None, gt=0, le=1, description="smallest scale; null: patch resolution / image resolution, full sharpness"
    )
    beta_start: float = Field(0.001, gt=0, le=1e6, description="Beta(1, b) at the start: nearly whole images")
    beta_end: float = Field(0.8, gt=0, le=1e6, description="and at the end")
    anneal_kimg: Kimg = Field(10000.0, description="from start to end")
    discrete_support: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.25, 1.0], max_length=100, description="scales of discrete_uniform"
    )
    group_layout: Literal["strided", "reference"] = Field(
        "strided", description="strided: samples of a minibatch-std group share a patch; reference: runs of neighbours"
    )


class EmaConfig(Section):
    """Moving average of the generator's weights."""

    kimg: Span | None = Field(None, description="half life; null: 0.3125 * batch size, in kimg")
    rampup: float | None = Field(0.05, gt=0, le=1e6, description="the half life is at most this share of nimg")
    start_kimg: Kimg = Field(0.0, description="until then the average is the network itself")


class AugmentMultipliers(Section):
    """Probability multiplier of each transform of the adaptive augmentation pipe; 0: never."""

    xflip: Weight = Field(0.0, description="flip left-right")
    rotate90: Weight = Field(1.0, description="quarter turns")
    xint: Weight = Field(1.0, description="whole-pixel shifts")
    scale: Weight = Field(1.0, description="size")
    rotate: Weight = Field(1.0, description="any turn")
    aniso: Weight = Field(1.0, description="stretch")
    xfrac: Weight = Field(1.0, description="sub-pixel shifts")
    brightness: Weight = Field(1.0, description="brightness")
    contrast: Weight = Field(1.0, description="contrast")
    lumaflip: Weight = Field(1.0, description="inverted brightness")
    hue: Weight = Field(1.0, description="hue")
    saturation: Weight = Field(1.0, description="saturation")
    imgfilter: Weight = Field(0.0, description="frequency bands made stronger or weaker")
    noise: Weight = Field(0.0, description="noise")
    cutout: Weight = Field(0.0, description="a blank square")


class AdaptiveAugmentConfig(Section):
    """Discriminator augmentation (ADA, arXiv 2006.06676)."""

    mode: Literal["none", "fixed", "ada"] = Field("none", description="ada: strength follows the overfitting")
    p: Share = Field(0.2, description="strength in mode fixed")
    target: float = Field(0.6, gt=0, lt=1, description="sign of the reals' logits that mode ada aims at")
    kimg: Span = Field(500.0, description="p may go from 0 to 1 in this time")
    interval: Count = Field(4, description="iterations between two adjustments")
    multipliers: AugmentMultipliers = AugmentMultipliers()


class DivergenceConfig(Section):
    """When a run counts as diverged, and how it recovers; see `threedgp.training.divergence` and `.recovery`."""

    enabled: bool = Field(True, description="watch the run, and go back to a healthy checkpoint when it diverges")
    grace: Share = Field(0.008, description="share of training.kimg at the start in which only NaN and infinity count")
    patience: Count = Field(5, description="ticks on end for which losses or logits must be bad")
    generator_loss_floor: Weight = Field(8.0, description="a generator's loss below this is never bad")
    generator_loss_factor: float = Field(4.0, ge=1, le=1e9, description="nor one below this multiple of what is normal")
    diversity_ticks: Count = Field(10, description="ticks between two looks at whether all samples are alike")
    candidate_ticks: Count = Field(
        50, description="ticks between checkpoints to go back to; one is healthy after half as many quiet ones"
    )
    attempts: Count = Field(4, description="rollbacks for the same stretch of training")
    rollbacks: int = Field(8, ge=0, le=1_000_000, description="rollbacks of a whole run")


class CheckpointConfig(Section):
    """Which checkpoints stay, besides the best one."""

    keep_last: Count = Field(3, description="the newest ones")
    keep_every_kimg: Span | None = Field(5000.0, description="and one every so often; null: none")


class TrainingConfig(Section):
    """Batch, duration, cadence, optimisers."""

    batch_size: Count = Field(64, description="images an iteration, over all processes")
    batch_gpu: Count | None = Field(None, description="micro-batch; null: batch size / processes")
    test_batch_gpu: Count = Field(4, description="batch of samples, videos and metrics")
    kimg: Span = Field(25000.0, description="length of the run in thousands of real images")
    max_minutes: float | None = Field(
        None, gt=0, le=1e9, description="also end after so many minutes, scores and samples on the way included"
    )
    coarse_kimg: Kimg = Field(
        0.0, description="so long fakes are rendered, and reals shown, at half the resolution: faster, and shapes first"
    )
    reuse_fakes: bool = Field(
        False, description="the discriminator learns from the fakes that the generator's phase made"
    )
    tick_kimg: Span = Field(4.0, description="images between two reports, in thousands")
    snapshot_ticks: Count = Field(100, description="ticks between checkpoints")
    image_ticks: Count = Field(100, description="ticks between sample sheets")
    metric_ticks: Count = Field(100, description="ticks between evaluations")
    metrics: list[str] = Field(
        default=["fid2k_full", "nfs256"], max_length=50, description="the first chooses the best checkpoint"
    )
    use_depth: bool = Field(True, description="the discriminator sees depth as a fourth channel")
    learn_camera: bool = Field(True, description="learn the camera distribution from the prior")
    blur_real_depth_sigma: float = Field(0.0, ge=0, le=1000, description="blur of the real depth maps in pixels")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything random")
    workers: int = Field(3, ge=0, le=1024, description="data loading processes per training process")
    freeze_discriminator_layers: Layers = Field(0, description="first blocks that do not learn, for fine-tuning")
    generator_optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(lr=0.002)
    patch: PatchConfig = PatchConfig()
    ema: EmaConfig = EmaConfig()
    augment: AdaptiveAugmentConfig = AdaptiveAugmentConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


class Profile(Section):
    """One named configuration of the whole system."""

    name: str = Field(description="of the profile; runs are called after it")
    description: str = Field("", description="one line about it")
    precision: Literal["fp32", "tf32", "bf16"] = Field("fp32", description="of matrix products and convolutions")
    compile: bool = Field(False, description="torch.compile the backbone and the discriminator's first-order passes")
    deterministic: bool = Field(
        False, description="same bytes for the same seed on GPUs too, at the price of speed; CPUs always give them"
    )
    gpus: int = Field(1, ge=1, le=100_000, description="how many the values were chosen for")
    data: DataConfig = DataConfig()
    camera: CameraConfig = CameraConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def gamma(self) -> float:
        """R1 weight: as chosen, else StyleGAN2-ADA's 0.0002 * resolution^2 / batch size (arXiv 2006.06676, App. C)."""
        if self.loss.gamma is not None:
            return self.loss.gamma
        return 0.0002 * self.data.resolution**2 / self.training.batch_size

    @property
    def gamma_fake(self) -> float:
        """R2 weight of the relativistic loss: as chosen, else that of R1."""
        return self.gamma if self.loss.gamma_fake is None else self.loss.gamma_fake

    @property
    def teachers(self) -> set[str]:
        """Networks whose features take part in the training: scores by the same features flatter."""
        eyes, distillation = self.model.feature_discriminator, self.loss.distillation
        used = ((eyes.network, eyes.weight), (self.data.embedder, distillation.weight))
        return {name for name, weight in used if weight > 0}

    @property
    def patch_law(self) -> PatchConfig:
        """The patch settings with their smallest scale: as chosen, else where a patch has the image's own pixels."""
        patch = self.training.patch
        if patch.min_scale is not None:
            return patch
        scale = patch.resolution / self.data.resolution if patch.enabled else 1.0
        return patch.model_copy(update={"min_scale": scale})

    @property
    def start_blocks(self) -> int:
        """The discriminator's blocks before the first one that halves: as chosen, else as if it saw whole images."""
        chosen, patch = self.model.discriminator.additional_start_blocks, self.training.patch
        if chosen is not None:
            return chosen
        return round(math.log2(self.data.resolution / patch.resolution)) if patch.enabled else 0
