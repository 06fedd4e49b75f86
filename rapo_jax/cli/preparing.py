"""What verbs do before they begin: devices, compiled programs, and keys that they need."""

import argparse
import os
from pathlib import Path

from rapo_jax.errors import UserError


def keep_compilations() -> None:
    """On accelerators, where compiling takes minutes, keeps compiled programs on disk: a resumed run starts at once.

    JAX_COMPILATION_CACHE_DIR chooses another place. CPUs compile in seconds, for their own instruction set only.
    """
    import jax

    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] (defined at run time)
    if jax.default_backend() != "cpu" and not cache:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "rapo_jax" / "compilations"))


def without_chips(options: argparse.Namespace) -> None:
    """Before JAX starts: makes the CPU its only backend, and keeps libtpu from looking for a TPU that is absent."""
    target = options.topology or options.smallest
    if not (target or options.devices):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.devices:
        from rapo_jax.plan.targets import cpu_count

        flag = "--xla_force_host_platform_device_count"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={cpu_count(options.devices)}".strip()
    elif target.lstrip("0123456789x").startswith(("v", "tpu")) and not tpu_is_here():
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
            "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any value silences a warning; every topology can still be described
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans may run at once
        }


def tpu_is_here() -> bool:
    return any(list(Path("/dev").glob(device)) for device in ("accel[0-9]*", "vfio/[0-9]*"))


def leave_accelerators() -> None:
    """Before JAX starts: leaves the memory of GPUs and TPUs to another program, also where one sees this process's environment."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def require(config, *keys: str) -> None:
    """Raises UserError for the first of these keys, which the verb needs, that is not set."""
    for key in keys:
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value:
            raise UserError(f"{key} is not set; add it to CONFIG or to the command line: {key}=...")


def require_data(config) -> None:
    """Raises UserError where neither data.path nor data.sources is set."""
    if not config.data.sources:
        require(config, "data.path")
