"""Network builders, small pretrained files and data loaders."""
