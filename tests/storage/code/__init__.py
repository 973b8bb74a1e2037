"""Tests of code bundles: packing, uploads, verification and unpacking."""
