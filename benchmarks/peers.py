"""The public packages that ours is measured against, as they ship: built at our size, trained and sampled their way.

compressive-transformer-pytorch 0.4.0 and wavenet-vocoder 0.1.1, both from PyPI (`make bench-peers`). They are imported
when they are built, so a package that is missing, or that this torch cannot run, costs its own row only.
"""

import importlib
import itertools
import math
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from audio_ct.models.settings import CompressiveTransformerSettings, WaveNetSettings
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe
from audio_ct.training.optimizer import make_optimizer

COMPRESSIVE_TRANSFORMER = "compressive-transformer-pytorch"
WAVENET = "wavenet-vocoder"
# Segments in one call of the public package's training loss, which carries memory from each to the next.
SEGMENTS_PER_CALL = 500


class PeerError(Exception):
    """A peer cannot be measured here; the message says why."""


def load(package: str) -> ModuleType:
    """Import a peer's module.

    Raises:
        PeerError: if it cannot be imported.
    """
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise PeerError(f"{package} cannot be imported ({error}); `make bench-peers` installs it.") from error


def segments_to_fill(model: CompressiveTransformerSettings) -> int:
    """The number of segments after which all memories of the public package are full."""
    past = model.memory_length + model.compressed_memory_length * model.compression_rate
    return math.ceil(past / model.segment_length)


def compressive_transformer(model: CompressiveTransformerSettings, vocabulary_size: int) -> nn.Module:
    """Build the public Compressive Transformer in its autoregressive wrapper, at the size of our plain model.

    Its gated residuals, which would nearly double its parameters, are switched off.

    Raises:
        PeerError: if there is no such model of it.
    """
    if model.front_dilations or model.linear_prediction:
        raise PeerError(f"{COMPRESSIVE_TRANSFORMER} has no front and no linear prediction.")
    if model.d_ff != 4 * model.d_model:
        raise PeerError(f"{COMPRESSIVE_TRANSFORMER} has d_ff = 4 d_model only; the recipe has {model.d_ff}.")
    package = load(COMPRESSIVE_TRANSFORMER)
    network = package.CompressiveTransformer(
        num_tokens=vocabulary_size,
        dim=model.d_model,
        depth=model.num_layers,
        heads=model.num_heads,
        seq_len=model.segment_length,
        mem_len=model.memory_length,
        cmem_len=model.compressed_memory_length,
        cmem_ratio=model.compression_rate,
        gru_gated_residual=False,
    )
    return package.AutoregressiveWrapper(network)


def wavenet(model: WaveNetSettings, vocabulary_size: int) -> Any:
    """Build the public WaveNet at the size of ours, without dropout."""
    return load(WAVENET).WaveNet(
        out_channels=vocabulary_size,
        layers=model.num_stacks * model.layers_per_stack,
        stacks=model.num_stacks,
        residual_channels=model.residual_channels,
        gate_channels=2 * model.residual_channels,
        skip_out_channels=model.skip_channels,
        kernel_size=model.width,
        dropout=0.0,
    )


class PeerTraining(ABC):
    """A peer in training at a recipe's batch and window; a call is a window of every lane and its update.

    Args:
        recipe: ours, of the same size.
        device: that it trains on.
        precision: "float32", which the peers are written for, or "bfloat16" by autocast.
        vocabulary_size: number of token values.
    """

    compiled = False

    def __init__(self, recipe: Recipe, device: torch.device, precision: str, vocabulary_size: int) -> None:
        torch.manual_seed(0)
        model = self._build(recipe.model, vocabulary_size).to(device).train()
        self.model: Any = model
        self.parameters = num_parameters(model)
        self.batch_size, self.window_length = recipe.training.batch_size, recipe.training.window_length
        self.precision = precision
        self._optimizer = make_optimizer(model, recipe.optimizer)
        self._clip_norm = recipe.training.gradient_clip_norm
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    @abstractmethod
    def _build(self, model: Any, vocabulary_size: int) -> nn.Module:
        """Build the peer's model at the size of ours."""

    @abstractmethod
    def __call__(self) -> None:
        """Train on one window of every lane."""

    def _update(self) -> None:
        """Clip and step."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class CompressiveTransformerTraining(PeerTraining):
    """The public Compressive Transformer by its own training loss, with memories carried and full from the start.

    Where the batch does not fit the GPU's memory it goes in the largest parts that do, by the package's own option.
    """

    def __init__(self, recipe: Recipe, device: torch.device, precision: str, vocabulary_size: int) -> None:
        assert isinstance(recipe.model, CompressiveTransformerSettings)
        if recipe.training.window_length != recipe.model.segment_length:
            raise PeerError(f"{COMPRESSIVE_TRANSFORMER} is measured with a window of one segment only.")
        super().__init__(recipe, device, precision, vocabulary_size)
        shape = (self.batch_size, self.window_length * SEGMENTS_PER_CALL + 1)
        self._tokens = torch.randint(0, vocabulary_size, shape, device=device)
        self._segments_to_fill = segments_to_fill(recipe.model) + 1
        self.part_size = self.batch_size
        self._begin()
        if not self._fits(self._segments_to_fill):
            self._shrink()

    def _build(self, model: Any, vocabulary_size: int) -> nn.Module:
        return compressive_transformer(model, vocabulary_size)

    def __call__(self) -> None:
        """Train on one segment of every lane."""
        while not self._fits(1):
            self._shrink()

    def _begin(self) -> None:
        """Start anew with empty memories; the package's generator of losses carries them on."""
        self._losses = itertools.chain.from_iterable(
            self.model(tokens, max_batch_size=self.part_size, return_loss=True)
            for tokens in itertools.repeat(self._tokens)
        )
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()

    def _fits(self, num_segments: int) -> bool:
        """Train on segments of every lane; False if the device's memory did not suffice."""
        try:
            for _ in range(num_segments):
                for _ in range(math.ceil(self.batch_size / self.part_size)):
                    with self._autocast:
                        loss, auxiliary_loss, _ = next(self._losses)
                    (loss + auxiliary_loss).backward()
                self._update()
        except torch.OutOfMemoryError:
            return False
        return True

    def _shrink(self) -> None:
        """Halve the lanes that are trained at a time until they fit, and fill the memories again."""
        fits = False
        while not fits:
            if self.part_size == 1:
                raise PeerError(f"{COMPRESSIVE_TRANSFORMER} does not fit the memory with one lane at a time.")
            self.part_size = (self.part_size + 1) // 2
            self._begin()
            fits = self._fits(self._segments_to_fill)


class WaveNetTraining(PeerTraining):
    """The public WaveNet on windows of its own input, one-hot tokens; it carries no state between them."""

    def __init__(self, recipe: Recipe, device: torch.device, precision: str, vocabulary_size: int) -> None:
        super().__init__(recipe, device, precision, vocabulary_size)
        self._vocabulary_size = vocabulary_size
        shape = (self.batch_size, self.window_length + 1)
        self._tokens = torch.randint(0, vocabulary_size, shape, device=device)

    def _build(self, model: Any, vocabulary_size: int) -> nn.Module:
        return wavenet(model, vocabulary_size)

    def __call__(self) -> None:
        """Train on one window of every lane."""
        inputs, targets = self._tokens[:, :-1], self._tokens[:, 1:]
        with self._autocast:
            logits = self.model(F.one_hot(inputs, self._vocabulary_size).float().transpose(1, 2))
        F.cross_entropy(logits.float(), targets).backward()
        self._update()


class CompressiveTransformerSampling:
    """One waveform of the public Compressive Transformer by its own generate(), from a prompt of so many tokens.

    After a prompt of more than a segment that function drops its samples, but only when all have been made.
    """

    def __init__(self, model: nn.Module, *, prompt_length: int, num_samples: int, device: torch.device) -> None:
        self.model: Any = model
        self._prompt = torch.zeros(1, prompt_length, dtype=torch.int64, device=device)
        self._num_samples = num_samples

    def __call__(self) -> None:
        """Make the samples."""
        self.model.generate(self._prompt, self._num_samples)


class WaveNetSampling:
    """One waveform of the public WaveNet by its own incremental_forward(), weight norm folded in as it offers."""

    num_waveforms = 1

    def __init__(self, recipe: Recipe, *, num_samples: int, device: torch.device, vocabulary_size: int) -> None:
        torch.manual_seed(0)
        assert isinstance(recipe.model, WaveNetSettings)
        self.model: Any = wavenet(recipe.model, vocabulary_size).to(device).eval()
        self.parameters = num_parameters(self.model)
        self.model.make_generation_fast_()
        self.num_samples = num_samples

    @torch.no_grad()
    def __call__(self) -> None:
        """Make the samples."""
        self.model.incremental_forward(T=self.num_samples)
