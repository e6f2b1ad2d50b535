"""The configuration of a run: every key a config file may hold, with its unit, range and default.

A config is a JSON file of these sections plus ``key=value`` overrides; engine/config_file.py reads it.
Sections are strict (no silent conversion), closed (no unknown key) and frozen. Defaults are the literal
reading of the thesis; where its text admits several readings, the key that chooses says which. Combinations
that cannot run are refused by engine/config_checks.py.

This module imports neither torch nor DeepSpeed: a misspelt key is reported before either is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from engine.config_checks import check

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _stage(value: Any) -> Any:
    """A literal 1 also matches true and 1.0, which are equal to it in Python; only an int is a stage."""
    if isinstance(value, bool | float):
        raise PydanticCustomError("literal_error", "{expected}", {"expected": "'auto', 0, 1, 2 or 3"})
    return value


ZeroStage = Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(_stage)]


class Section(BaseModel):
    """A group of keys: strict types, no unknown key, immutable; the docstring under a field is its
    description."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Section):
    """The training images."""

    source: Literal["auto", "rooms", "folder", "lmdb", "celeba", "cifar", "tar", "prepared"] = "auto"
    """"auto": what lies at `path`, told by its content: "folder" (JPEG, PNG, WebP or BMP files; FFHQ), "lmdb"
    (of DiffAE, PDAE, DiTi, or LSUN's own), "celeba", "cifar" (batches), "tar" (WebDataset), "prepared" (by
    `diffsiam prepare`). "rooms": procedural bedrooms, drawn from `seed`, with known factors."""
    path: str | None = None
    """Folder or file of the images; not for source "rooms"."""
    split: Literal["train", "valid", "test", "all"] = "train"
    """Part of a set that is published in parts (CelebA's list, CIFAR's batches, folders or shards named train
    and test, LSUN's databases); sets without parts are read whole."""
    px: Annotated[int, Field(ge=8)] = 128
    """Side of the square training image, in pixels (16 to 128 for source "rooms")."""
    count: Positive = 20_000
    """Images in the training set; source "rooms" only (other sources have what they have)."""
    held_out: NonNegative = 0
    """Images kept out of training, or drawn beyond it ("rooms"). Task "diffusion" measures its
    loss on them in ten bands of t with every sheet of samples (`log.grid_every`)."""
    flip: bool = True
    """Mirror each image left-right with probability 1/2 (PDAE does)."""
    augment: Literal["auto", "crop", "blur", "none"] = "auto"
    """The two SimSiam views. "crop": random resized crop, colour jitter, grey (SimSiam's CIFAR-10 recipe);
    "blur": jitter, grey and Gaussian blur of the whole image (crops of a scene change its layout); "none":
    the image itself; "auto": "crop" up to 32 px, else "blur"."""
    threads: Positive = 4
    """Threads that decode images, per rank. Does not change the result."""
    workers: NonNegative = 0
    """Processes that read files in place of threads, per rank: where Python cannot keep up with a fast GPU.
    Does not change the result."""
    prefetch: Positive = 2
    """Micro-batches made ahead, per rank. Does not change the result."""
    resident: Literal["auto", "device", "host", "off"] = "auto"
    """Keep all images decoded, as uint8. "device": in the GPU's memory; "host": in the computer's, with the
    pixels of "off"; "auto": where a set fits with ease (15 % of the GPU's free memory, 25 % of the host's, at
    most 8 GiB) and its views need no cut of larger images."""
    broken: NonNegative | None = None
    """Images that may be broken before the run ends with exit code 5: each is listed in quarantine.jsonl and
    replaced by the next of the same permutation (null: 0.1 % of the set, at most 1000)."""


class FrozenConfig(Section):
    """The frozen diffusion model u; in task "diffusion", the model being trained.

    An architecture field left null is read from the weights; one that is given must agree with them.
    """

    weights: str | None = None
    """A checkpoint of PDAE, DiTi, DiffAE, guided-diffusion or ours, a folder of diffusers or of `diffsiam
    export`, "builtin:NAME" (shipped with the package) or "random" (untrained, for trials only)."""
    base_channels: Annotated[int, Field(gt=0, multiple_of=4)] | None = None
    """Channels at full resolution (normalised in groups of at least 4)."""
    channel_mult: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Channels of each level as a multiple of `base_channels`; each level after the first halves the
    image."""
    blocks: Positive | None = None
    """Residual blocks per level."""
    attention: tuple[Positive, ...] | None = None
    """Downsampling factors (1, 2, 4, ...), not pixel sizes, at which attention is applied."""
    heads: Positive | None = None
    """Attention heads; files of others do not record it (null: 1, or what the file records)."""
    head_channels: Positive | None = None
    """Channels of an attention head, in place of `heads` (guided diffusion's 256-px models: 64)."""
    dropout: Fraction | None = None
    """Dropout probability while the diffusion model itself is trained; it is off while frozen (null: 0)."""
    learn_sigma: bool | None = None
    """The model also predicts a variance (6 output channels), which is ignored (null: as the weights have it,
    or false)."""


class ScheduleConfig(Section):
    """The noise schedule (DDPM, linear): it must be the one the frozen model was trained with."""

    steps: Positive = 1000
    """T, the number of noise levels."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """First beta."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Last beta, inclusive."""


class DecoderConfig(Section):
    """The trainable gradient estimator g: the frozen model's middle and decoder once more, conditioned on
    z."""

    init: Literal["random", "frozen", "weights"] = "random"
    """"random": new weights (as PDAE); "frozen": start from the frozen decoder's weights. Either way g is 0
    at the start; "frozen" converges several times faster. "weights": go on from the trained pair that
    `frozen.weights` names."""
    dropout: Fraction = 0.0
    """Dropout probability in g."""


class EncoderConfig(Section):
    """The encoder f, from an image to z."""

    arch: Literal["resnet10", "resnet18", "resnet50", "pdae"] = "resnet10"
    """"resnet10": the thesis' text; "pdae": the small convolutional encoder (64 or 128 px) that published
    configurations use."""
    width: Positive = 64
    """Channels of the ResNet stem, at least 8 (the last stage has 8 times as many, 32 times for resnet50);
    not used by "pdae"."""
    dim: Positive = 512
    """d, the size of z."""
    norm: Literal["none", "batch"] = "none"
    """"batch": z is normalised over the batch (running statistics afterwards), so that the decoder hears it
    from the first step on; "none": as published."""
    init: Literal["random", "weights"] = "random"
    """"weights": go on from the encoder of the trained pair that `frozen.weights` names."""


class SubsetsConfig(Section):
    """How z is cut into subsets z_1..z_n, and which of them the decoder sees at noise level t."""

    n: Positive = 64
    """Number of subsets."""
    choice: Literal["random", "time_tied", "profile", "full"] = "random"
    """How k is chosen. "random": k ~ U{1..n}, independent of t (thesis Alg. 1, literally); "time_tied": equal
    windows of t, k = 1 + floor(t n / range of t), which the claim "low subsets are fine attributes" (thesis
    4.2.1) presupposes; "profile": windows of t with equal shares of what the frozen model loses; "full": the
    whole of z (PDAE), with a random length of the jump if there is one."""
    mask: Literal["hierarchical", "sequential"] = "hierarchical"
    """"hierarchical": the decoder sees z_1..z_k; "sequential": z_k alone (thesis 4.3.1)."""
    detach: bool = False
    """Only z_k receives a gradient, z_1..z_{k-1} are seen but detached. The thesis describes it both as the
    design (3.2) and as a variant ("DiffSiam-Detach", 4.3.2); Algorithm 1 does not have it."""
    split: Literal["balanced", "staged"] = "balanced"
    """"balanced": n subsets of d / n entries; "staged": unequal subsets from `stages` and
    `dims_per_stage`."""
    stages: tuple[Positive, ...] | None = None
    """Ends of the stages in t, ascending, the last one T; for split "staged" (DiTi: 50, 100, 300, 500,
    1000)."""
    dims_per_stage: tuple[Positive, ...] | None = None
    """Entries of z per stage, d in all; for split "staged" (DiTi: 10, 25, 327, 100, 50)."""
    boundaries: tuple[int, ...] | None = None
    """First t of subsets 2..n, ascending; for choice "profile". Null: measured from the frozen model when
    training starts."""


class JumpConfig(Section):
    """The noise jump from t to t + k."""

    steps: Literal["k", "none"] = "k"
    """"k": the networks see x_{t+k} (thesis Eq. 3.11); "none": x_t (PDAE, DiTi)."""
    time: Literal["t", "t_plus_k"] = "t"
    """The time the networks are told about x_{t+k}. "t": Eq. 3.11 as printed, so at small t the image is
    noisier than they are told; "t_plus_k": its true noise level."""


class LossConfig(Section):
    """The compensation loss (thesis Eq. 3.11), in epsilon form."""

    weight: NonNegativeFloat = 1.0
    """Factor of the loss; 0 leaves SimSiam alone and needs no diffusion model."""
    gamma: NonNegativeFloat = 0.1
    """Exponent of lambda_t = SNR_t^gamma / (1 + SNR_t) (PDAE: 0.1)."""


class SimSiamConfig(Section):
    """The invariance loss (thesis Eq. 3.9; SimSiam)."""

    weight: NonNegativeFloat = 1.0
    """Factor of the loss: Eq. 3.12 is an unweighted sum (1), published sibling configurations never train
    both losses (0). The loss lies in [-1, 0] while the compensation loss is about 1e-2: log.gradnorm_every
    shows which one drives the encoder."""
    projector: Literal["none", "mlp2", "mlp3"] = "none"
    """Layers between z and the predictor. "none": Eq. 3.9 as printed; "mlp2" (SimSiam on CIFAR-10) and "mlp3"
    (SimSiam, DiTi)."""
    dim: Positive = 512
    """Width of the projector's layers and output; without a projector the predictor works on z itself."""
    hidden: Positive = 128
    """Width of the predictor's hidden layer (SimSiam and DiTi: a quarter of its input)."""


class OptimizerConfig(Section):
    """One optimizer for everything that is trained."""

    name: Literal["adam", "sgd"] = "adam"
    """Adam (PDAE) or SGD with momentum (SimSiam)."""
    lr: PositiveFloat = 1e-4
    """Learning rate for the global batch; it is never scaled by the number of ranks."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates."""
    momentum: Fraction = 0.9
    """SGD's momentum."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty added to the gradient."""
    grad_clip: PositiveFloat | None = None
    """Largest global gradient norm; null: no clipping."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: constant, or a half cosine down to 0 at train.steps."""
    warmup_steps: NonNegative = 0
    """Steps of linear rise from 0 to `lr`."""


class TrainConfig(Section):
    """Length and arithmetic of the training loop."""

    steps: Positive = 500_000
    """Optimizer steps."""
    batch_size: Positive = 128
    """Images per optimizer step over all ranks and accumulation steps (global)."""
    accumulation: Positive = 1
    """Micro-batches per optimizer step on each rank: less memory, same gradient."""
    ema_decay: Fraction = 0.9999
    """Decay of the moving average of the trained weights per step, which is what is evaluated."""
    ema_warmup: bool = False
    """Use min(ema_decay, (1 + step) / (10 + step)): the average of a short run forgets its random start."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """"auto": bf16 on CUDA and on CPUs with native bf16, fp32 elsewhere; parameters and optimizer state stay
    fp32."""
    attention: Literal["auto", "xformers", "flash", "cudnn", "efficient", "sdpa"] = "auto"
    """"auto": on CUDA the fastest of the next four, measured at the start on the model's own sizes, on a CPU
    matrix products; "flash", "cudnn", "efficient": that routine of torch's SDPA; "sdpa": as torch chooses."""
    compile: Literal["off", "auto"] = "auto"
    """"auto": torch.compile where it is known to work and pays; "off": eager."""


class ParallelConfig(Section):
    """Distribution over ranks."""

    zero: ZeroStage = "auto"
    """ZeRO stage: what DeepSpeed shards over the ranks. 1: optimizer state, 2: and gradients, 3: and
    parameters; "auto": 0 on one rank, 1 on several."""


class KernelsConfig(Section):
    """The operations that the step is made of."""

    backend: Literal["auto", "triton", "reference"] = "auto"
    """"auto": Triton on CUDA, the PyTorch reference elsewhere; which one runs is printed. "triton": Triton or
    an error (on the CPU only in its interpreter, with TRITON_INTERPRET=1). "reference": the PyTorch
    reference."""


class LogConfig(Section):
    """What is written while training. Nothing here changes the result."""

    every: Positive = 100
    """Steps between lines of metrics."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases (extra "wandb"; WANDB_MODE=offline keeps it here)."""
    grid_every: NonNegative = 5000
    """Steps between sheets of sample images, the last step included; 0: never."""
    grid_images: Positive = 8
    """Images on a sheet."""
    save_every: Positive = 5000
    """Steps between checkpoints; the last step is always saved."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept; at least two, so that one is whole while the next is written."""
    gradnorm_every: NonNegative = 1000
    """Steps between measurements of both losses' gradient norms on the encoder; 0: never."""


class RunConfig(Section):
    """Where results go."""

    dir: str | None = None
    """Directory of the run; null: runs/NAME, after the config file."""
    timeout: PositiveFloat = 600.0
    """Seconds that a step may take, waiting for images and other ranks included, before the run ends with
    exit code 6 and the stacks of all threads."""
    timeout_slow: PositiveFloat = 3600.0
    """The same for what may take long: starting, the first step, drawing, saving."""
    skips: NonNegative = 10
    """Updates that may be left out within 100 steps, because a loss or a gradient is not finite, before the
    run ends with exit code 3 and a dump for `diffsiam replay`."""
    compare_every: NonNegative = 1000
    """Steps between comparisons of all ranks' weights, which must be equal to the bit; 0: only before a
    checkpoint is saved."""
    stop_code: Literal[0, 75] = 0
    """Exit code of a run that was asked to stop and saved; 75 tells a supervisor to start it again."""


class ReportConfig(Section):
    """The report of the run, report/index.html. Nothing here changes the result."""

    page: bool = True
    """Write the page, rewrite it about once a minute while the run trains, and when it ends."""
    explorer: bool = False
    """When training ends, make the pictures of the page's explorer: pairs of images x subsets x scales, and
    attributes more and less. Some 13,000 image moves: half a minute for the quickstart; on a CPU up to 32 px
    only. `diffsiam report RUN --explorer` makes them at any time."""

    factors: bool = False
    """Rooms only: the frozen model's attribute-loss profile, the subset-by-factor map, and a counterfactual
    sheet with its table."""
    guidance_scale: PositiveFloat = 1.0
    """Factor of G when the report decodes edited images; 1 is what G was trained for, more makes z prevail
    over what x_t already shows. The loss and the probe do not depend on it."""


class Config(Section):
    """A run. Sections that a task does not use are ignored by it."""

    task: Literal["diffsiam", "diffusion"] = "diffsiam"
    """"diffsiam": learn the representation; "diffusion": train the diffusion model it needs (thesis Eq. 3.4),
    which uses data, frozen (architecture), schedule, optimizer, train, parallel, kernels, log and run."""
    method: Literal["diffsiam", "literal", "simsiam", "pdae", "diti"] = "literal"
    """A preset of switches in subsets, jump, loss and simsiam (METHODS in engine/config_file.py). It yields
    to keys written beside it and, named on the command line, overrules those of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Key of every random draw."""
    notes: tuple[str, ...] = ()
    """Where the values come from; for readers."""
    data: DataConfig = DataConfig()
    frozen: FrozenConfig = FrozenConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    decoder: DecoderConfig = DecoderConfig()
    encoder: EncoderConfig = EncoderConfig()
    subsets: SubsetsConfig = SubsetsConfig()
    jump: JumpConfig = JumpConfig()
    loss: LossConfig = LossConfig()
    simsiam: SimSiamConfig = SimSiamConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    kernels: KernelsConfig = KernelsConfig()
    log: LogConfig = LogConfig()
    run: RunConfig = RunConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _is_possible(self) -> Config:
        check(self)
        return self

    @property
    def needs_frozen(self) -> bool:
        """Whether the run reads a trained diffusion model (`frozen.weights`)."""
        return self.task == "diffsiam" and self.loss.weight > 0

    def to_dict(self) -> dict[str, Any]:
        """All effective values as plain JSON types."""
        return self.model_dump(mode="json")
