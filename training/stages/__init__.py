"""One file a stage: what is trained, on what, against which loss."""
