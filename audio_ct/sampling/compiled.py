"""Steps of sampling as machine code.

On a CPU a step is compiled ahead of time for its shapes, without weights, and kept on disk under the user's cache
folder. On a GPU it is captured as a CUDA graph, and compiled before where there is Triton.
"""

import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from audio_ct.durable import sha256_of, synchronise
from audio_ct.errors import InputError

logger = logging.getLogger("audio_ct")

# Compiling takes some 25 to 50 seconds, once for each shape of model, and saves 3 ms or so of each step after it.
PAYS_FROM_SAMPLES = 12_000
# Compiled steps that are kept, those used last: some megabytes each.
NUM_KEPT = 16
# torch._inductor.graph.GraphLowering.can_inline_constant
INLINED_LENGTH = 8


def can_compile(device: torch.device) -> bool:
    """Tell if there is a compiler for steps on this device."""
    # Compilers take a second to import.
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton() and any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def can_prepare(device: torch.device) -> bool:
    """Tell if `prepare` can make something of a step on this device: a GPU can capture it without a compiler."""
    return device.type == "cuda" or can_compile(device)


def compiling_pays(model: nn.Module, num_samples: int) -> bool:
    """Tell if a model's step should be compiled for so many samples, where it stands."""
    return num_samples >= PAYS_FROM_SAMPLES and can_prepare(next(model.parameters()).device)


def prepare(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Make a function of machine code that calls a module with these very arguments, left as they are for now.

    The module has static shapes, makes no decisions that depend on data, and works in place; arguments are tensors and
    nested dictionaries of them.

    Raises:
        InputError: if it cannot be compiled here, or the code cannot be kept.
    """
    device = pytree.tree_leaves(arguments)[0].device
    if not can_prepare(device):
        raise InputError("compiled: there is no compiler (g++ or $CXX) here; install one or sample with --no-compiled.")
    if device.type == "cuda":
        return _capture_on_gpu(module, arguments)
    from torch._inductor.exc import CppCompileError

    try:
        return _compile_for_cpu(module, arguments)
    except (CppCompileError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"compiled: the step cannot be compiled: {reason}; sample with --no-compiled.") from error


def _compile_for_cpu(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Compile a module with the machine's C++ compiler, or take the code from the cache folder.

    The code is kept there under a digest of everything that it depends on. Weights are no part of it: another
    checkpoint of the same model takes it from there in a second or two.
    """
    # The name is private, but torch documents ahead-of-time compilation by it.
    from torch._inductor import aoti_load_package

    settings = {"cpp.threads": torch.get_num_threads(), "aot_inductor.package_constants_in_so": False}
    exported = torch.export.export(module, arguments)
    constants = {**exported.state_dict, **exported.constants}
    code = exported.graph_module.print_readable(print_output=False, include_stride=True)
    depends_on = (
        # Comments name the source files.
        [line.partition("#")[0] for line in code.splitlines()],
        str(exported.graph_signature),
        # The compiler writes the values of constants as short as this into the code.
        {name: tensor.tolist() for name, tensor in constants.items() if tensor.numel() <= INLINED_LENGTH},
        settings,
        torch.__version__,
        _processor(),
    )
    package = _package(exported, settings, hashlib.sha256(repr(depends_on).encode()).hexdigest()[:32])
    runner = aoti_load_package(str(package), run_single_threaded=True)
    used = {name: constants[name].detach() for name in runner.get_constant_fqns()}
    runner.load_constants(used, check_full_update=True)
    # A direct call of the runner parses a description of its arguments each time.
    leaves = pytree.tree_leaves(arguments)
    return lambda: runner.loader.boxed_run(list(leaves))


def _package(exported: torch.export.ExportedProgram, settings: dict[str, Any], key: str) -> Path:
    """Find the compiled step that is kept under a key, or compile it where there is none or it is damaged.

    Its name is KEY-DIGEST.pt2, with the SHA-256 of its content.
    """
    from torch._inductor import aoti_compile_and_package

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "audio-ct", "steps")
    for path in folder.glob(f"{key}-*.pt2"):
        if path.stem == f"{key}-{sha256_of(path)[:32]}":
            # The time of last use, by which old steps are removed.
            path.touch()
            return path
        logger.warning("%s is damaged; compiling again", path)
        path.unlink()
    logger.info("compiling the step, once for this model's shapes: half a minute or more")
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(aoti_compile_and_package(exported, package_path=f"{temporary}/step.pt2", inductor_configs=settings))
        synchronise(made)
        path = folder / f"{key}-{sha256_of(made)[:32]}.pt2"
        made.replace(path)
    logger.info("compiled in %.0f s, kept as %s", time.perf_counter() - began, path)
    _remove_old_steps(folder)
    return path


def _remove_old_steps(folder: Path) -> None:
    """Keep the compiled steps that were used last."""
    # Other processes may remove the same files.
    with suppress(FileNotFoundError):
        for path in sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime)[:-NUM_KEPT]:
            path.unlink()


def _processor() -> str:
    """The processor's instruction set, which compiled code depends on, where the system lists it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"


def _capture_on_gpu(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Capture a module's kernels as a CUDA graph, to be replayed."""
    tensors = pytree.tree_leaves(arguments)
    before = [tensor.clone() for tensor in tensors]
    compiled: Callable[..., object] = module
    if can_compile(tensors[0].device):
        # One sample's products are read from memory faster by generated code than by matrix libraries.
        compiled = torch.compile(module, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True})
    else:
        logger.warning("the step is captured, but not compiled: there is no Triton or no C compiler (gcc or $CC) here")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Every sampler compiles the same function for shapes of its own, none of them twice.
    with torch._dynamo.config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16):
        with torch.cuda.stream(stream):
            for _ in range(3):
                compiled(*arguments)
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compiled(*arguments)
    return graph.replay
