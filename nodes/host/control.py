"""What control nets of Stable Diffusion 2.x, which the host runs frame by frame, are given."""


def check_control(control, frames: int) -> None:
    """Refuse control pictures that are neither one for the clip nor one a frame.

    The host takes the first ones, repeats them, or lets a branch of guidance see those of other frames.

    control: the last control net of a conditioning, or None; each knows the one before it.

    Raises:
        ValueError: another number of pictures.
    """
    while control is not None:
        pictures = control.cond_hint_original
        if pictures is not None and len(pictures) not in (1, frames):
            raise ValueError(
                f"expected 1 control picture, or one for each of {frames} frames, got {len(pictures)}; pick "
                "or repeat images before Apply ControlNet, or set the clip's frames to their number."
            )
        control = control.previous_controlnet


def check_whole(control, tile: int | None) -> None:
    """Refuse control, which is of whole frames, where the network sees them in tiles.

    control: what the control nets add to the network, or None.
    """
    if control and tile is not None:
        raise ValueError(
            "ControlNet acts on whole frames, and this model sees them in tiles; leave one of the two out."
        )
