"""GPU check: what was shown on CPU ranks, repeated with NCCL, bf16 and device memory."""
