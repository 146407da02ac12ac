"""The typed profile: every hyper-parameter of data, camera, networks, losses and training.

Defaults are those of 3DGP (arXiv 2303.01416, Sec. 4 and App. B) at 256x256 with the wide uniform camera prior, so a
profile file only names what it changes. Unknown keys and wrong types are refused. Values that follow from others
(`None` or "auto" here) are filled in once by `threedgp.config.rules.resolve`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings: strict types, no unknown keys, read-only once built."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=False)


# ---------------------------------------------------------------------------------------------------------------- data


class ImageAugmentConfig(Section):
    """Simple augmentation of whole training images: one warp for image and depth, brightness for the image only."""

    where: Literal["none", "reals", "both"] = Field("none", description="reals leaks into the generator; both does not")
    probability: float = Field(0.5, ge=0, le=1, description="of each transform, independently")
    rotation: float = Field(10.0, ge=0, le=180, description="largest angle in degrees")
    shift: float = Field(0.0625, ge=0, le=0.5, description="largest shift as a fraction of the side")
    flip: bool = Field(True, description="horizontal flip; skipped when data.mirror already doubles the set")
    brightness: float = Field(0.2, ge=0, le=1, description="largest change of brightness, image range 0..1")


class DataConfig(Section):
    """The training set under data/<dataset>/<resolution>."""

    dataset: str | None = Field(None, description="folder under data/; null: the only one there")
    resolution: int = Field(256, ge=8, description="side of the square images in pixels")
    num_classes: int = Field(0, ge=0, description="0: unconditional")
    mirror: bool = Field(True, description="also train on every image flipped left-right")
    max_images: int | None = Field(None, ge=1, description="train on a seeded random subset of this size")
    embedder: str = Field("resnet50", description="name of the embeddings that distillation predicts")
    embedding_dim: int = Field(2048, ge=1)
    augment: ImageAugmentConfig = ImageAugmentConfig()


# -------------------------------------------------------------------------------------------------------------- camera


class RangeConfig(Section):
    """Bounds and moments of one camera number; which of them count depends on the distribution."""

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = Field(None, ge=0)


class ScalarPriorConfig(RangeConfig):
    """Prior of field of view (degrees) or a radius (world units). normal needs std 0: a constant."""

    dist: Literal["uniform", "truncnorm", "normal"] = "uniform"


AngleDistribution = Literal["uniform", "normal", "truncnorm", "hybrid", "spherical_uniform", "custom"]


class OriginPriorConfig(Section):
    """Prior of the camera position's yaw and pitch in radians; pitch pi/2 is the equator."""

    dist: AngleDistribution = "uniform"
    yaw: RangeConfig = RangeConfig(min=-1.57, max=1.57)
    pitch: RangeConfig = RangeConfig(min=0.785398163, max=2.35619449)


class LookAtPriorConfig(Section):
    """Prior of the look-at point inside a ball about the world origin (ball-in-sphere camera)."""

    dist: AngleDistribution = "spherical_uniform"
    yaw: RangeConfig = RangeConfig(min=-3.14159265, max=3.14159265)
    pitch: RangeConfig = RangeConfig(min=0.0, max=3.14159265)
    radius: ScalarPriorConfig = ScalarPriorConfig(dist="uniform", min=0.0, max=0.2)


class CameraConfig(Section):
    """Camera prior, ray interval and scene cube (3DGP Sec. 3.3)."""

    near: float = Field(0.75, gt=0, description="start of the rays, world units from the camera")
    far: float = Field(1.25, gt=0, description="end of the rays")
    cube_scale: float = Field(0.5, gt=0, description="half side of the scene cube")
    origin: OriginPriorConfig = OriginPriorConfig()
    fov: ScalarPriorConfig = ScalarPriorConfig(dist="uniform", min=10.0, max=45.0)
    radius: ScalarPriorConfig = ScalarPriorConfig(dist="normal", mean=1.0, std=0.0)
    look_at: LookAtPriorConfig = LookAtPriorConfig()
    validate_viewing_frustum: bool = Field(False, description="refuse a prior whose rays leave the scene cube")


# ------------------------------------------------------------------------------------------------------------ networks


class MLPConfig(Section):
    """The field's MLP on top of the tri-plane features."""

    layers: int = Field(2, ge=2)
    hidden_dim: int = Field(64, ge=1)


class TriPlaneConfig(Section):
    """Three feature planes per image (EG3D, arXiv 2112.07945, Sec. 4.1)."""

    resolution: int = Field(512, ge=4)
    features: int = Field(32, ge=1, description="channels of each plane")
    mlp: MLPConfig = MLPConfig()


class DensityNoiseConfig(Section):
    """Gaussian noise on raw densities, fading out early in training."""

    init_std: float = Field(1.0, ge=0)
    anneal_kimg: float = Field(5000.0, ge=0)


class CameraConditioningConfig(Section):
    """Feed the camera angles to a mapping network."""

    enabled: bool = False
    drop_probability: float = Field(0.0, ge=0, le=1)
    spoof_probability: float = Field(0.5, ge=0, le=1, description="generator only: swapped angles, from 1 to this")


class GeneratorConfig(Section):
    """Mapping network, tri-plane backbone and renderer."""

    z_dim: int = Field(512, ge=1)
    w_dim: int = Field(512, ge=1)
    cbase: int = Field(32768, ge=1, description="channels at resolution r: min(cbase * fmaps / r, cmax)")
    cmax: int = Field(512, ge=1)
    fmaps: float = Field(1.0, gt=0)
    map_depth: int = Field(2, ge=1)
    architecture: Literal["skip", "orig", "resnet"] = "skip"
    use_noise: bool = True
    fp32_only: bool = Field(True, description="false: clamp activations at 256; `precision` says how it computes")
    tri_plane: TriPlaneConfig = TriPlaneConfig()
    ray_steps: int = Field(32, ge=4, description="coarse samples per ray, and as many fine ones")
    ray_jitter: Literal["ray", "image", "none"] = Field(
        "ray", description="samples shift at random on every ray by itself, on all rays of an image alike, or never"
    )
    marcher: Literal["classical", "mip"] = "classical"
    clamp_mode: Literal["softplus", "relu"] = "softplus"
    density_bias: float = 0.0
    use_inf_depth: bool = True
    use_full_box: bool = False
    white_back: bool = False
    last_back: bool = False
    max_batch_res: int = Field(128, ge=1, description="rays are rendered in chunks of the square of this at test time")
    density_noise: DensityNoiseConfig = DensityNoiseConfig()
    camera_conditioning: CameraConditioningConfig = CameraConditioningConfig()


class DepthAdaptorConfig(Section):
    """Turns rendered depth into what a monocular estimator would say (3DGP Sec. 3.2)."""

    kernel_size: int = Field(5, ge=1)
    hidden_dim: int = Field(64, ge=1)
    layers: int = Field(3, ge=0, description="hidden layers; 0: only the linear normalisation")
    out_strategy: Literal["random", "last", "mean"] = "random"
    selection_start_p: float = Field(0.1, ge=0, le=1)
    anneal_kimg: float = Field(10000.0, ge=0)
    near_plane_offset_max_fraction: float = Field(0.25, ge=0, le=1)
    near_plane_offset_bias: float = -3.0


class AdjustConfig(Section):
    """Which camera numbers the camera adaptor may move."""

    angles: bool = True
    radius: bool = False
    fov: bool = True
    look_at: bool = True


class CameraAdaptorConfig(Section):
    """Learns the camera distribution from the prior (3DGP Sec. 3.3)."""

    hidden_dim: int = Field(256, ge=1)
    embed_dim: int = Field(16, ge=1)
    lr_multiplier: float = Field(0.1, gt=0)
    residual: bool = False
    adjust: AdjustConfig = AdjustConfig()


class DiscriminatorConfig(Section):
    """Patch-wise, hyper-modulated discriminator (EpiGRAF, arXiv 2206.10535, Sec. 3.2)."""

    cbase: int = Field(32768, ge=1)
    cmax: int = Field(512, ge=1)
    fmaps: float = Field(1.0, gt=0)
    hyper_mod: bool = True
    additional_start_blocks: int | None = Field(None, ge=0, description="null: log2(resolution / patch)")
    mbstd_group_size: int | None = Field(4, ge=1, description="null: the whole micro-batch")
    fp32_only: bool = Field(False, description="as the generator's")
    camera_conditioning: CameraConditioningConfig = CameraConditioningConfig()


class ModelConfig(Section):
    """The networks."""

    kind: Literal["3dgp", "epigraf", "stylegan2"] = "3dgp"
    generator: GeneratorConfig = GeneratorConfig()
    depth_adaptor: DepthAdaptorConfig = DepthAdaptorConfig()
    camera_adaptor: CameraAdaptorConfig = CameraAdaptorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


# -------------------------------------------------------------------------------------------------------------- losses


class PathLengthConfig(Section):
    """StyleGAN2's path-length regulariser (arXiv 1912.04958, Sec. 3.2); weight 0: off."""

    weight: float = Field(0.0, ge=0)
    start_kimg: float = Field(0.0, ge=0)
    interval: int = Field(4, ge=1)


class BlurConfig(Section):
    """Blur what the discriminator sees at the start of training."""

    init_sigma: float = Field(10.0, ge=0)
    fade_kimg: float = Field(200.0, ge=0, le=1000)


class DistillationConfig(Section):
    """The discriminator predicts an image network's features of real images (3DGP Sec. 3.4); weight 0: off."""

    weight: float = Field(1.0, ge=0)
    anneal_kimg: float = Field(100000.0, gt=0)
    distance: Literal["l2", "kl"] = "l2"


class TransportConfig(Section):
    """Squared transport distance between posterior and prior cameras."""

    enabled: bool = True
    anneal_kimg: float = Field(10000.0, ge=0)
    num_samples: int = Field(64, ge=2)
    origin: float = Field(2.0, ge=0)
    radius: float = Field(0.0, ge=0)
    fov: float = Field(1e-4, ge=0)
    look_at: float = Field(1e-4, ge=0)


class GradientPenaltyConfig(Section):
    """The paper's camera regulariser |g| + 1/|g| on the adaptor's own derivatives (3DGP Eq. 5)."""

    enabled: bool = False
    num_samples: int = Field(256, ge=1)
    origin: float = Field(0.3, ge=0)
    radius: float = Field(0.0, ge=0)
    fov: float = Field(0.03, ge=0)
    look_at: float = Field(0.003, ge=0)


class ForceMeanConfig(Section):
    """Keep the mean of the posterior angles at the prior's centre; weight 0: off."""

    weight: float = Field(10.0, ge=0)
    num_samples: int = Field(256, ge=1)


class CameraRegularizerConfig(Section):
    """Regularisers of the learned camera distribution; any subset."""

    emd: TransportConfig = TransportConfig()
    gradient_penalty: GradientPenaltyConfig = GradientPenaltyConfig()
    force_mean: ForceMeanConfig = ForceMeanConfig()


class LossConfig(Section):
    """Adversarial loss and everything added to it."""

    adversarial: Literal["non_saturating", "hinge", "relativistic"] = "non_saturating"
    gamma: float | Literal["auto"] = Field("auto", description="R1 weight; auto: 0.0002 * resolution^2 / batch")
    gamma_fake: float | None = Field(None, ge=0, description="R2 weight of the relativistic loss; null: gamma")
    regularization_interval: int = Field(16, ge=1, description="iterations between lazy R1 steps")
    logits_clamp: float = Field(1e7, gt=0)
    style_mixing_probability: float = Field(0.0, ge=0, le=1)
    path_length: PathLengthConfig = PathLengthConfig()
    blur: BlurConfig = BlurConfig()
    distillation: DistillationConfig = DistillationConfig()
    camera: CameraRegularizerConfig = CameraRegularizerConfig()


# ------------------------------------------------------------------------------------------------------------ training


class OptimizerConfig(Section):
    """Adam."""

    lr: float = Field(0.0025, gt=0)
    betas: list[float] = Field(default=[0.0, 0.99], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float | None = Field(None, gt=0, description="clip the network's gradient to this global norm")


class PatchConfig(Section):
    """Patch-wise training (EpiGRAF Sec. 3.3); scales are fractions of the image side."""

    enabled: bool = True
    conditioning: bool = Field(True, description="tell the discriminator scale and offset")
    resolution: int = Field(64, ge=4)
    distribution: Literal["beta", "uniform", "discrete_uniform"] = "beta"
    max_scale: float = Field(1.0, gt=0, le=1)
    min_scale: float | None = Field(None, gt=0, le=1, description="null: patch resolution / image resolution")
    beta_start: float = Field(0.001, gt=0)
    beta_end: float = Field(0.8, gt=0)
    anneal_kimg: float = Field(10000.0, ge=0)
    discrete_support: list[float] = [0.25, 1.0]
    group_layout: Literal["strided", "reference"] = Field(
        "strided", description="strided: samples of a minibatch-std group share a patch; reference: runs of neighbours"
    )


class EmaConfig(Section):
    """Moving average of the generator's weights."""

    kimg: float | None = Field(None, gt=0, description="half life; null: 0.3125 * batch size, in kimg")
    rampup: float | None = Field(0.05, gt=0)
    start_kimg: float = Field(0.0, ge=0)


class AugmentMultipliers(Section):
    """Probability multiplier of each transform of the adaptive augmentation pipe."""

    xflip: float = Field(0.0, ge=0)
    rotate90: float = Field(1.0, ge=0)
    xint: float = Field(1.0, ge=0)
    scale: float = Field(1.0, ge=0)
    rotate: float = Field(1.0, ge=0)
    aniso: float = Field(1.0, ge=0)
    xfrac: float = Field(1.0, ge=0)
    brightness: float = Field(1.0, ge=0)
    contrast: float = Field(1.0, ge=0)
    lumaflip: float = Field(1.0, ge=0)
    hue: float = Field(1.0, ge=0)
    saturation: float = Field(1.0, ge=0)
    imgfilter: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0)
    cutout: float = Field(0.0, ge=0)


class AdaptiveAugmentConfig(Section):
    """Discriminator augmentation (ADA, arXiv 2006.06676)."""

    mode: Literal["none", "fixed", "ada"] = "none"
    p: float = Field(0.2, ge=0, le=1, description="strength in mode fixed")
    target: float = Field(0.6, gt=0, lt=1)
    kimg: float = Field(500.0, gt=0, description="p may go from 0 to 1 in this time")
    interval: int = Field(4, ge=1)
    multipliers: AugmentMultipliers = AugmentMultipliers()


class DivergenceConfig(Section):
    """When a run counts as diverged, and how it recovers; see `threedgp.training.divergence` and `.recovery`."""

    enabled: bool = Field(True, description="watch the run, and go back to a healthy checkpoint when it diverges")
    grace: float = Field(
        0.008, ge=0, le=1, description="share of training.kimg at the start in which only NaN and infinity count"
    )
    patience: int = Field(5, ge=1, description="ticks on end for which losses or logits must be bad")
    generator_loss_floor: float = Field(8.0, ge=0, description="a generator's loss below this is never bad")
    generator_loss_factor: float = Field(4.0, ge=1, description="nor one below this multiple of what is normal")
    diversity_ticks: int = Field(10, ge=1, description="ticks between two looks at whether all samples are alike")
    candidate_ticks: int = Field(
        50, ge=1, description="ticks between checkpoints to go back to; one is healthy after half as many quiet ones"
    )
    attempts: int = Field(4, ge=1, description="rollbacks for the same stretch of training")
    rollbacks: int = Field(8, ge=0, description="rollbacks of a whole run")


class CheckpointConfig(Section):
    """Which checkpoints stay."""

    keep_last: int = Field(3, ge=1)
    keep_every_kimg: float | None = Field(5000.0, gt=0)


class TrainingConfig(Section):
    """Batch, duration, cadence, optimisers."""

    batch_size: int = Field(64, ge=1, description="over all processes")
    batch_gpu: int | None = Field(None, ge=1, description="micro-batch; null: batch size / processes")
    test_batch_gpu: int = Field(4, ge=1, description="batch of samples, videos and metrics")
    kimg: float = Field(25000.0, gt=0, description="length of the run in thousands of real images")
    max_minutes: float | None = Field(
        None, gt=0, description="also end after so many minutes, scores and samples on the way included"
    )
    tick_kimg: float = Field(4.0, gt=0)
    snapshot_ticks: int = Field(100, ge=1)
    image_ticks: int = Field(100, ge=1)
    val_every: int = Field(100, ge=1, description="ticks between evaluations")
    metrics: list[str] = Field(default=["fid2k_full", "nfs256"], description="the first chooses the best checkpoint")
    use_depth: bool = True
    learn_camera: bool = True
    blur_real_depth_sigma: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)
    workers: int = Field(3, ge=0, description="data loading processes per training process")
    freeze_discriminator_layers: int = Field(0, ge=0)
    generator_optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(lr=0.002)
    patch: PatchConfig = PatchConfig()
    ema: EmaConfig = EmaConfig()
    augment: AdaptiveAugmentConfig = AdaptiveAugmentConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


class Profile(Section):
    """One named configuration of the whole system."""

    name: str
    description: str = ""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = Field(
        False, description="same bytes for the same seed on GPUs too, at the price of speed; CPUs always give them"
    )
    compile: bool = Field(False, description="torch.compile the backbone and the discriminator's first-order passes")
    gpus: int = Field(1, ge=1, description="how many the values were chosen for")
    data: DataConfig = DataConfig()
    camera: CameraConfig = CameraConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
