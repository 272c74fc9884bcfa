"""UniVid for ComfyUI. The host loads this folder as a pack and pytest imports it: nothing happens here."""
