"""Steps of sampling as machine code.

On a CPU a step is compiled ahead of time for its shapes, without weights, and kept on disk. On a GPU it is compiled and
captured as a CUDA graph.
"""

import hashlib
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from audio_ct.durable import synchronise
from audio_ct.errors import InputError

logger = logging.getLogger("audio_ct")

# torch._inductor.graph.GraphLowering.can_inline_constant
INLINED_LENGTH = 8


def can_compile(device: torch.device) -> bool:
    """Return whether there is a compiler for steps on this device."""
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


def prepare(module: nn.Module, arguments: tuple[Any, ...], *, restored: Sequence[Tensor]) -> Callable[[], object]:
    """Return a function that does with these very arguments what the module does, by machine code.

    Args:
        module: static shapes, no decisions that depend on data.
        arguments: what it reads and writes, each time.
        restored: which of the arguments must be as before after the module has been tried; the others it overwrites.

    Raises:
        InputError: if it cannot be compiled here, or the code cannot be kept.
    """
    if not can_compile(restored[0].device):
        raise InputError("compiled: there is no compiler (g++ or $CXX) here; install one or sample with --no-compiled.")
    if restored[0].device.type == "cuda":
        return _capture_on_gpu(module, arguments, restored)
    from torch._inductor.exc import CppCompileError

    try:
        return _compile_for_cpu(module, arguments)
    except (CppCompileError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"compiled: the step cannot be compiled: {reason}; sample with --no-compiled.") from error


def _compile_for_cpu(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that does without Python what the module does.

    The code is compiled by the machine's C++ compiler in some 10 to 40 seconds, and kept under the user's cache folder
    (`cache_folder`) by everything that it depends on. Weights are no part of it: another checkpoint of the same model
    takes it from there in a second or two.
    """
    # Private as the name is, this is how torch documents ahead-of-time compilation.
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
    # Called directly, the runner parses a description of its arguments each time.
    leaves = pytree.tree_leaves(arguments)
    return lambda: runner.loader.boxed_run(list(leaves))


def _package(exported: torch.export.ExportedProgram, settings: dict[str, Any], key: str) -> Path:
    """Return the compiled step that is kept under a key, compiled now if there is none or it is damaged.

    Its name is KEY-DIGEST.pt2, by the SHA-256 of its content.
    """
    from torch._inductor import aoti_compile_and_package

    folder = cache_folder()
    for path in folder.glob(f"{key}-*.pt2"):
        if path.stem == f"{key}-{_digest(path)}":
            return path
        logger.warning("%s is damaged; compiling again", path)
        path.unlink()
    logger.info("compiling the step, once for this model's shapes: half a minute or more")
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(aoti_compile_and_package(exported, package_path=f"{temporary}/step.pt2", inductor_configs=settings))
        synchronise(made)
        path = folder / f"{key}-{_digest(made)}.pt2"
        made.replace(path)
    logger.info("compiled in %.0f s, kept as %s", time.perf_counter() - began, path)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _processor() -> str:
    """Return what code for this very processor depends on: its instructions, where the system tells them."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"


def _capture_on_gpu(module: nn.Module, arguments: tuple[Any, ...], restored: Sequence[Tensor]) -> Callable[[], object]:
    """Return a function that replays what the module does as a CUDA graph."""
    before = [tensor.clone() for tensor in restored]

    def restore() -> None:
        for tensor, value in zip(restored, before, strict=True):
            tensor.copy_(value)

    # One sample's products are read from memory faster by generated code than by matrix libraries.
    compiled = torch.compile(module, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True})
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Every sampler compiles the same function for shapes of its own, none of them twice.
    with torch._dynamo.config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16):
        with torch.cuda.stream(stream):
            for _ in range(3):
                compiled(*arguments)
                restore()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compiled(*arguments)
    return graph.replay


def cache_folder() -> Path:
    """Return where compiled steps are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "audio-ct" / "steps"
