"""Out of memory, of the host or of a device, as one sentence: what did not fit, what to change, what is safe."""

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the text of XLA's error

# What asks for memory, by verb, and what is not lost when there is too little.
FEWER_ROWS = "lower rows.per_shard, rows.length or data.max_length"
AMONG_MORE = "the model among more devices with mesh.fsdp, and long rows with mesh.context"
MEMORY_KNOBS = {
    "train": f"{FEWER_ROWS}, set model.remat=full, or share {AMONG_MORE}",
    "score": f"{FEWER_ROWS}, set model.dtype=bfloat16, or share {AMONG_MORE}",
    "evaluate": f"{FEWER_ROWS}, set model.dtype=bfloat16, or share {AMONG_MORE}",
    "generate": "lower --batch-tokens or --batch-size; --dtype bfloat16 takes less, with another --out",
    "export": "share the model among more devices, or take a machine with more memory",
}
KEPT = {
    "train": " What run_dir holds is safe, and the same command goes on from its last checkpoint.",
    "score": " What was computed is kept, and the command goes on unless data.max_length or model.dtype has changed.",
    "evaluate": " What was computed is kept, and the command goes on unless data.max_length or model.dtype has changed.",
    "generate": " The answers so far are kept, and the command goes on.",
}


def is_out_of_memory(error: Exception) -> bool:
    """Whether an array did not fit the host's memory or a device's, of which JAX has no exception of its own."""
    return isinstance(error, MemoryError) or (type(error).__name__ == "JaxRuntimeError" and OUT_OF_MEMORY in str(error))


def out_of_memory(verb: str, error: Exception) -> str:
    """The sentence about it: what did not fit, what to change, what is safe."""
    lines = str(error).strip().splitlines()
    fact = lines[0].rpartition(f"{OUT_OF_MEMORY}: ")[2].rstrip(".") if lines else "an array does not fit"
    knobs = MEMORY_KNOBS.get(verb, "use less data at once, or a machine with more memory")
    return f"out of memory ({fact:.200}); {knobs}.{KEPT.get(verb, '')}"
