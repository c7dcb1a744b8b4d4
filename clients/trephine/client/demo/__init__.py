"""The main job on a real model, told as it happens: `trephine demo`."""
