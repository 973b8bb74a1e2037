"""Mixture: samples drawn from weighted sources whose weights and shards change while training, exactly."""
