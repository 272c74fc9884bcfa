"""Everything that touches the host's internals (`comfy.*`). Node files call this and `univid`."""
