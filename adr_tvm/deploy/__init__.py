"""What runs a compiled network: bundle, runtime, threads."""
