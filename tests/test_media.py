"""Pictures and films through real files: round trips, and one InputError for whatever can be wrong with a file."""

import logging
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import GifImagePlugin, Image

from rhea.errors import InputError
from rhea.media import is_film, read_film, read_picture, write_film, write_picture

rng = np.random.default_rng(0)


def smooth(height: int, width: int) -> np.ndarray:
    """A colourful picture that lossy codecs keep well."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return np.stack([x * 255, y * 255, (1 - x) * y * 255], axis=-1).astype(np.uint8)


def moving_square(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 40, np.uint8)
    for index in range(num_frames):
        frames[index, 8:24, 2 * index : 2 * index + 16] = (230, 60, 30)
    return frames


def refused(path: Path, *words: str, read=read_picture, **options) -> None:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 4), (".JPEG", 4), (".webp", 6)])
def test_picture_round_trip(tmp_path: Path, suffix: str, tolerance: int) -> None:
    pixels = smooth(33, 47)
    write_picture(tmp_path / f"a{suffix}", pixels)
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8
    assert read.shape == (33, 47, 3)
    assert np.abs(read.astype(int) - pixels).mean() <= tolerance  # lossy codecs: mean error in levels of 255
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.full((1, 1, 3), 7, np.uint8))
    assert read_picture(tmp_path / "a.png").tolist() == [[[7, 7, 7]]]


def test_unknown_extension_lists_the_allowed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        write_picture(tmp_path / "a.tiff", smooth(4, 4))
    with pytest.raises(InputError, match=r"\.mp4, \.gif"):
        write_film(tmp_path / "a.avi", moving_square(2), 8)
    assert not list(tmp_path.iterdir())


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 0, 0, 255)
    pixels[0, 1] = (200, 0, 0, 0)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert read[0, 0].tolist() == [200, 0, 0]
    assert read[0, 1].tolist() == [255, 255, 255]


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert read_picture(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "LA", "P"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.fromarray(np.full((5, 6, 3), 255, np.uint8)).convert(mode).save(tmp_path / f"a.{suffix}")
    read = read_picture(tmp_path / f"a.{suffix}")
    assert read.shape == (5, 6, 3)
    assert (read == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0, :, 0].tolist() == [0, 64, 128, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown rotated by 90 degrees clockwise
    Image.fromarray(smooth(16, 32)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png"), np.rot90(smooth(16, 32), -1))


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    header = struct.pack(">II", 200_000, 200_000) + b"\x08\x02\x00\x00\x00"
    write_picture(bomb, smooth(2, 2))
    data = bytearray(bomb.read_bytes())
    data[16:29] = header
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    bomb.write_bytes(data)
    refused(bomb, "pixels")
    write_picture(bomb, smooth(20, 30))
    refused(bomb, "30 x 20", "599", max_pixels=599)
    assert read_picture(bomb, max_pixels=600).shape == (20, 30, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_picture_is_refused_or_whole(tmp_path: Path, suffix: str) -> None:
    pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    write_picture(tmp_path / f"a.{suffix}", pixels)
    whole = read_picture(tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    refusals = 0
    for cut in range(1, len(data), max(1, len(data) // 60)):
        (tmp_path / f"b.{suffix}").write_bytes(data[:cut])
        try:
            assert np.array_equal(read_picture(tmp_path / f"b.{suffix}"), whole)
        except InputError:
            refusals += 1
    assert refusals >= 55


def test_a_png_without_its_end_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", smooth(20, 20))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data + b"added by a camera")
    assert read_picture(tmp_path / "a.png").shape == (20, 20, 3)
    for missing in (12, 6, 1):
        (tmp_path / "a.png").write_bytes(data[:-missing])
        refused(tmp_path / "a.png", "cut off")
    first, *rest = [Image.fromarray(frame) for frame in moving_square(3)]
    first.save(tmp_path / "a.png", save_all=True, append_images=rest, duration=50)
    assert len(read_film(tmp_path / "a.png").frames) == 3
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    refused(tmp_path / "a.png", "cut off", read=read_film)


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    broken = tmp_path / "b.png"
    write_picture(broken, smooth(24, 24))
    data = broken.read_bytes()
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            damaged[position] = rng.integers(0, 256)
        broken.write_bytes(damaged)
        try:
            read_picture(broken)
        except InputError as error:
            assert str(broken) in str(error)  # noqa: PT017 (most damaged files are refused, some still decode)


@pytest.mark.parametrize("read", [read_picture, read_film, is_film])
def test_missing_empty_and_folder(tmp_path: Path, read) -> None:
    refused(tmp_path / "none.png", "no such file", read=read)
    refused(tmp_path / ("x" * 5000 + ".png"), "no such file", read=read)
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty", read=read)
    refused(tmp_path, "folder", read=read)


def test_text_named_as_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    refused(tmp_path / "a.png", "not a picture")
    refused(tmp_path / "a.png", read=read_film)
    (tmp_path / "a.txt").write_text("hello\n" * 1000)
    refused(tmp_path / "a.txt", read=read_film)
    assert not is_film(tmp_path / "a.txt")


# --- films ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("fps", [8, 12.5, 24])
def test_film_round_trip(tmp_path: Path, suffix: str, fps: float) -> None:
    frames = moving_square(16)
    write_film(tmp_path / f"a{suffix}", frames, fps)
    film = read_film(tmp_path / f"a{suffix}")
    assert film.frames.shape == frames.shape
    assert film.frames.dtype == np.uint8
    assert film.fps == pytest.approx(fps, rel=0.02)  # GIF counts in hundredths of a second
    assert np.abs(film.frames.astype(int) - frames).mean() < 2  # chroma at half resolution blurs the square's edge
    assert np.abs(film.frames[0, 16, 8].astype(int) - frames[0, 16, 8]).max() <= 4
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]
    assert is_film(tmp_path / f"a{suffix}")


def test_odd_sizes_gain_a_copied_row_and_column(tmp_path: Path) -> None:
    frames = np.repeat(smooth(31, 45)[None], 3, axis=0)
    write_film(tmp_path / "a.mp4", frames, 8)
    film = read_film(tmp_path / "a.mp4")
    assert film.frames.shape == (3, 32, 46, 3)
    assert np.abs(film.frames[:, :31, :45].astype(int) - frames).mean() < 3
    write_film(tmp_path / "a.gif", frames, 8)
    assert read_film(tmp_path / "a.gif").frames.shape[1:] == (31, 45, 3)


def test_the_same_frames_are_the_same_file(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    files = set[bytes]()
    for _ in range(60):
        write_film(tmp_path / "film.mp4", frames, 8.0)
        files.add((tmp_path / "film.mp4").read_bytes())
    assert len(files) == 1


def test_one_pixel_film(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", np.full((2, 1, 1, 3), 90, np.uint8), 8)
    assert read_film(tmp_path / "a.mp4").frames.shape == (2, 2, 2, 3)


def test_gif_keeps_time_when_frames_stand_still(tmp_path: Path) -> None:
    images = [Image.fromarray(frame) for frame in moving_square(6)[[0, 0, 0, 1, 2, 2, 3]]]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)  # merges the repeats
    film = read_film(tmp_path / "a.gif")
    assert film.fps == pytest.approx(10)
    assert len(film.frames) == 7
    assert np.array_equal(film.frames[0], film.frames[2])
    assert not np.array_equal(film.frames[2], film.frames[3])


@pytest.mark.parametrize("order", [[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], list(range(8)), [0, 1, 0, 1, 1, 0, 0]])
@pytest.mark.parametrize("fps", [0.5, 8, 12.5, 24, 29.97, 30000 / 1001, 40, 50])
def test_a_gif_keeps_every_frame_and_its_rate(tmp_path: Path, order: list[int], fps: float) -> None:
    frames = moving_square(8)[order]
    write_film(tmp_path / "a.gif", frames, fps)
    assert is_film(tmp_path / "a.gif")
    film = read_film(tmp_path / "a.gif")
    assert np.array_equal(film.frames, frames)
    assert film.fps == fps
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.info["loop"], getattr(image, "n_frames", 1)) == (0, len(frames))


def test_a_gif_faster_than_viewers_show_tells_its_real_rate(tmp_path: Path) -> None:
    write_film(tmp_path / "a.gif", moving_square(8), 100)
    assert read_film(tmp_path / "a.gif").fps == 50
    write_film(tmp_path / "a.gif", moving_square(8), 25)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data.replace(b"25 frames", b"99 frames"))  # a comment that is not true
    assert read_film(tmp_path / "a.gif").fps == 25


def test_animated_webp_is_a_film_and_its_first_frame_a_picture(tmp_path: Path) -> None:
    first, *rest = [Image.fromarray(frame) for frame in moving_square(5)]
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest, duration=50, lossless=True)
    assert is_film(tmp_path / "a.webp")
    film = read_film(tmp_path / "a.webp")
    assert np.array_equal(film.frames, moving_square(5))
    assert film.fps == pytest.approx(20)
    assert np.array_equal(read_picture(tmp_path / "a.webp"), moving_square(5)[0])


def test_a_picture_is_no_film_and_a_film_no_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", smooth(8, 8))
    assert not is_film(tmp_path / "a.png")
    refused(tmp_path / "a.png", "not a film", read=read_film)
    write_film(tmp_path / "a.mp4", moving_square(2), 8)
    refused(tmp_path / "a.mp4", "not a picture")


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_max_frames_reads_the_beginning_and_says_so(tmp_path: Path, suffix: str, caplog) -> None:
    write_film(tmp_path / f"a.{suffix}", moving_square(9), 10)
    whole = read_film(tmp_path / f"a.{suffix}")
    with caplog.at_level(logging.WARNING, logger="rhea"):
        assert np.array_equal(read_film(tmp_path / f"a.{suffix}", max_frames=9).frames, whole.frames)
        assert not caplog.records
        assert np.array_equal(read_film(tmp_path / f"a.{suffix}", max_frames=4).frames, whole.frames[:4])
    assert "first 4" in caplog.text
    with pytest.raises(InputError, match="at least 1"):
        read_film(tmp_path / f"a.{suffix}", max_frames=0)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_film_over_the_cap_is_refused(tmp_path: Path, suffix: str) -> None:
    write_film(tmp_path / f"a.{suffix}", moving_square(8), 8)
    refused(tmp_path / f"a.{suffix}", "64 x 48", read=read_film, max_pixels=8 * 64 * 48 - 1)
    assert len(read_film(tmp_path / f"a.{suffix}", max_pixels=8 * 64 * 48).frames) == 8
    assert len(read_film(tmp_path / f"a.{suffix}", max_frames=2, max_pixels=2 * 64 * 48).frames) == 2


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_truncated_film_is_refused_or_whole(tmp_path: Path, suffix: str) -> None:
    frames = moving_square(12)
    frames[:, 30:, :] = rng.integers(0, 255, (12, 18, 64, 3), dtype=np.uint8)
    write_film(tmp_path / f"a.{suffix}", frames, 8)
    whole = read_film(tmp_path / f"a.{suffix}").frames
    data = (tmp_path / f"a.{suffix}").read_bytes()
    broken = tmp_path / f"b.{suffix}"
    refusals = 0
    for cut in range(1, len(data), len(data) // 30):
        broken.write_bytes(data[:cut])
        try:
            assert np.array_equal(read_film(broken).frames, whole)
        except InputError as error:
            refusals += str(broken) in str(error)
    assert refusals >= 28


def noise_film(path: Path, container: str, codec: str = "libx264", trimmed: int = 0) -> list[bytes]:
    """Write 20 frames of noise, of which the first ``trimmed`` are not to be shown; return the packets' bytes."""
    with av.open(str(path), "w", format=container, options={"movflags": "+faststart"}) as output:
        stream = output.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        noise = np.random.default_rng(1).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
        packets = [packet for frame in noise for packet in stream.encode(av.VideoFrame.from_ndarray(frame))]
        packets += stream.encode()
        for packet in packets:
            packet.pts, packet.dts = packet.pts - trimmed, packet.dts - trimmed  # in frames
            output.mux(packet)
        return [bytes(packet) for packet in packets]


def test_a_film_cut_inside_its_header_is_refused(tmp_path: Path) -> None:
    noise_film(tmp_path / "a.mp4", "mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    for cut in (*range(40, 1000, 10), data.index(b"mdat"), data.index(b"mdat") + 4):
        (tmp_path / "b.mp4").write_bytes(data[:cut])
        refused(tmp_path / "b.mp4", read=read_film)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")]
)
def test_a_film_cut_between_two_frames_is_refused(tmp_path: Path, container: str, codec: str) -> None:
    film = tmp_path / "film"
    packets = noise_film(film, container, codec)
    assert len(read_film(film).frames) == 20
    data = film.read_bytes()
    for kept in (5, 12, 16):
        film.write_bytes(data[: data.index(packets[kept][-64:]) + 64])
        refused(film, "cut off", read=read_film)
        assert len(read_film(film, max_frames=2).frames) == 2


def test_a_trimmed_film_is_whole_although_it_hides_frames(tmp_path: Path) -> None:
    noise_film(tmp_path / "a.mp4", "mp4", trimmed=5)
    assert len(read_film(tmp_path / "a.mp4").frames) == 15
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    edit = data.index(b"elst") + 12
    data[edit : edit + 4] = struct.pack(">I", 1000)  # one second is shown
    (tmp_path / "a.mp4").write_bytes(data)
    assert len(read_film(tmp_path / "a.mp4").frames) == 8


def test_a_film_written_live_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    packets = noise_film(tmp_path / "a.mkv", "matroska")
    data = (tmp_path / "a.mkv").read_bytes()
    size = data.index(b"\x18\x53\x80\x67") + 4
    live = data[:size] + b"\x01" + b"\xff" * 7 + data[size + 8 :]
    (tmp_path / "a.mkv").write_bytes(live[: live.index(packets[5][-64:]) + 64])
    assert len(read_film(tmp_path / "a.mkv").frames) in (5, 6)


def test_a_gif_cut_between_two_frames_is_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "a.gif", moving_square(8), 8)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: data.rindex(b"!\xf9\x04")])
    refused(tmp_path / "a.gif", "cut off", read=read_film)
    assert len(read_film(tmp_path / "a.gif", max_frames=3).frames) == 3


def test_a_film_with_sound_only_has_no_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(tmp_path / "a.mp4", "no frames", read=read_film)
    with pytest.raises(InputError, match="no frames"):
        write_film(tmp_path / "b.mp4", moving_square(0), 8)
    assert not (tmp_path / "b.mp4").exists()


def test_a_phone_held_upright(tmp_path: Path) -> None:
    frames = np.repeat(smooth(32, 64)[None], 2, axis=0)
    write_film(tmp_path / "a.mp4", frames, 8)
    level = read_film(tmp_path / "a.mp4").frames
    data = (tmp_path / "a.mp4").read_bytes()
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    start = data.index(identity, data.index(b"tkhd"))  # the track's display matrix
    (tmp_path / "b.mp4").write_bytes(data[:start] + clockwise + data[start + 36 :])
    assert np.array_equal(read_film(tmp_path / "b.mp4").frames, np.rot90(level, -1, axes=(1, 2)))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_frame_rates(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError, match="frames per second"):
        write_film(tmp_path / "a.mp4", moving_square(2), fps)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    write_film(tmp_path / "a.gif", moving_square(2), 8)
    before = (tmp_path / "a.gif").read_bytes()
    monkeypatch.setattr(GifImagePlugin, "getdata", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_film(tmp_path / "a.gif", moving_square(3), 8)
    assert (tmp_path / "a.gif").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
