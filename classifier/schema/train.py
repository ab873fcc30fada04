"""The section `train` of params.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from classifier.schema.section import Arithmetic, Device, Fraction, Probability, Section, Seed

LENET5, LENET5_SIZE = "lenet5", 32  # pixels, height and width; all data sets but folder have this size

Count = Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]


class AugmentParams(Section):
    per: Literal["batch", "image"] = Field(
        description="batch: all images of a batch get the same shift, rotation and scale, each its own flip and so on; "
        "image: each image has its own"
    )
    shift: int = Field(ge=0, le=256, description="maximum shift in each direction, pixels")
    rotation: float = Field(ge=0, le=180, description="maximum rotation in either direction, degrees")
    scale: float = Field(ge=0, le=0.9, description="maximum change of size; 0.1 scales by 0.9 to 1.1")
    flip: Probability = Field(description="probability of a horizontal flip")
    crop: float = Field(
        gt=0, le=1, description="smallest share of the area that a random resized crop keeps; 1 crops nothing"
    )
    policy: Literal["none", "trivialaugment"] = Field(
        description="trivialaugment: one change of colour or geometry, of random strength (Müller and Hutter 2021)"
    )
    erase: Probability = Field(description="probability of an erased box of 2% to 33% of the area (Zhong et al. 2020)")
    mixup: float = Field(ge=0, le=10, description="MixUp: alpha of the Beta distribution of shares; 0: none")
    cutmix: float = Field(
        ge=0, le=10, description="CutMix: alpha of the Beta distribution; 0: none; half of the images, beside mixup"
    )


class KeepParams(Section):
    weights: Literal["last", "validation_loss", "validation_accuracy"] = Field(
        description="of the last epoch, or of the epoch with the best value on the validation images"
    )
    ema: Fraction = Field(
        description="decay per step of the weights' moving average, which is validated and kept in their place; 0: none"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        description="epochs without a better value after which training ends; null: all epochs are trained"
    )


class TrainParams(Section):
    seed: Seed = Field(description="seed of the initial weights, the order of the images and the augmentation")
    seeds: int = Field(ge=1, le=1024, description="number of models to train, with seeds seed, seed + 1, and so on")
    network: str = Field(
        pattern=r"^(timm/)?\w[\w.-]*$|^\w[\w.]*:\w+$",
        max_length=200,
        description="lenet5, a name of torchvision.models, timm/NAME, or module:function of the folder networks/",
    )
    pretrained: Literal["imagenet", "file"] | None = Field(
        description="initial weights: null (random, by the seed), imagenet (torchvision's) or file",
    )
    pretrained_file: str = Field(
        min_length=1,
        description="safetensors or .pth file of pretrained: file, a path in the project, or an absolute path",
    )
    freeze: Literal["always"] | Annotated[int, Field(ge=0)] = Field(
        description="epochs in which only the last layer is trained; always: in all epochs"
    )
    epochs: int = Field(ge=1, le=100_000, description="passes over the training split")
    batch_size: int = Field(
        ge=1, le=65_536, description="images per optimizer step; the last batch of an epoch may be smaller"
    )
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        description="sgd (with momentum), adamw, or muon (orthogonalized momentum; adamw for biases)"
    )
    learning_rate: float = Field(gt=0, le=100, description="peak learning rate")
    momentum: Fraction = Field(description="sgd and muon: momentum")
    nesterov: bool = Field(description="sgd and muon: use Nesterov momentum")
    weight_decay: float = Field(ge=0, le=10, description="sgd: L2 penalty; adamw and muon: decoupled weight decay")
    schedule: Literal["constant", "one_cycle", "cosine"] = Field(
        description="learning rate schedule: constant, one_cycle (warm-up, then decay) or cosine (decay)"
    )
    warmup_fraction: Fraction = Field(description="one_cycle: fraction of the steps used for warm-up")
    label_smoothing: Fraction = Field(description="fraction of the target probability distributed over all classes")
    augment: AugmentParams
    layer_decay: float = Field(
        gt=0, le=1, description="learning rate of the first layer relative to that of the last; in between geometric"
    )
    clip: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        description="largest norm of a batch's gradients, which are scaled down to it; null: any"
    )
    balance: Literal["none", "loss", "sampling"] = Field(
        description="uneven classes: loss gives them the same weight in the loss, sampling the same share of an epoch"
    )
    keep: KeepParams
    log_every: int = Field(ge=1, description="optimizer steps per window of the running loss")
    checkpoint_every: int = Field(
        ge=0, description="optimizer steps between checkpoints, besides one per epoch; 0 disables checkpoints"
    )
    device: Device = Field(description="auto selects cuda if available, then mps, then cpu")
    arithmetic: Arithmetic = Field(
        description="on a CPU: portable (the same bits on every x86-64 processor with AVX2) or native (its own kernels)"
    )
    parts: Count = Field(
        description="parts of a batch, whose gradients are accumulated: more of them need less memory; auto: 2 on a "
        "CPU, else 1. On a CPU each is computed by one thread, but a single part in native arithmetic by one per core"
    )
    processes: Count = Field(description="processes that share the parts on a CPU (Linux); auto: one per core")
    deterministic: bool = Field(
        description="on cuda, refuse layers without a deterministic kernel; false: they run, and the run says so"
    )
    compile: bool = Field(
        description="on cuda, torch.compile the network: fewer and faster kernels, after a compilation whose time is "
        "printed; ignored elsewhere"
    )
    data: Literal["auto", "resident", "streamed"] = Field(
        description="resident (all images in memory, or on the GPU) or streamed (read from their files while training, "
        "with the same result); auto: resident if they take up to half of the free memory and, on a CPU, less than "
        "256 MiB"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        description="float32, tf32 (TF32 matrix products on cuda) or bfloat16 (autocast; weights stay float32). "
        "On a CPU, bfloat16 is fast only in native arithmetic with AVX512-BF16 or AMX, and elsewhere ten times as slow"
    )

    def problems(self) -> Iterator[str]:
        patience = self.keep.patience
        if self.optimizer != "adamw" and self.nesterov and self.momentum == 0:
            yield "nesterov: true with momentum: 0.0; allowed is a momentum above 0, or nesterov: false"
        if self.batch_size == 1 and max(self.augment.mixup, self.augment.cutmix) > 0:
            yield "augment.mixup or cutmix with batch_size: 1; allowed is 2 or more, since images of a batch are mixed"
        if patience is not None and self.keep.weights == "last":
            yield (
                f"keep.patience: {patience} with keep.weights: last; allowed is validation_loss or "
                "validation_accuracy, or patience: null"
            )
        if patience is not None and patience >= self.epochs:
            yield f"keep.patience: {patience} with epochs: {self.epochs}; allowed are fewer than epochs"
        if self.precision == "tf32" and self.device in ("cpu", "mps"):
            yield f"precision: tf32 with device: {self.device}; allowed is device: cuda or auto, or float32 or bfloat16"
