"""The GPU check: what was shown on CPU ranks, run with NCCL, bf16 and real device memory."""
