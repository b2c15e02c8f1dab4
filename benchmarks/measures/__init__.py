"""What the benchmarks are made of: `goals` is shared by all, every other module measures one part of a script."""
