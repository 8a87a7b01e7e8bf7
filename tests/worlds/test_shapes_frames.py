"""A vision tokenizer's pictures and clips: they show every kind of training and none that is held out."""

from rhea.worlds.shapes.frames import ShapesFrames, ShapesFramesConfig
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.scene import allowed_kinds


def test_no_held_out_kind_is_shown() -> None:
    config = ShapesFramesConfig(num_pictures=200, num_clips=15, whole_from=0, whole_divisor=1)
    batch = ShapesFrames(config).next_batch()
    pictures, clips = (
        {thing.kind for frame in frames for thing in read_picture(frame)}
        for frames in (batch["pictures"], batch["clips"][:, 0])
    )
    assert pictures == set(allowed_kinds("exclude"))
    assert len(clips) > 15
    assert clips <= pictures
