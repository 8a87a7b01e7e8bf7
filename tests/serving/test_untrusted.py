"""Files from strangers: each failure that other servers had with media is a file here."""

import asyncio
import base64
import copy
import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from rhea.media import write_film
from rhea.serving import untrusted
from rhea.serving.backend import Clip
from rhea.serving.errors import ApiError
from rhea.serving.untrusted import MediaGuard, MediaLimits, media_format

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def guard() -> MediaGuard:
    return MediaGuard()


def limited(guard: MediaGuard, **limits: float) -> MediaGuard:
    """Return a guard of other limits over the same forking process."""
    other = copy.copy(guard)
    other.limits = replace(guard.limits, **limits)
    return other


def encoded(kind: str, pixels: np.ndarray = PIXELS, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def film(path: Path, frames: int = 8, fps: float = 8, side: int = 32) -> bytes:
    write_film(path, np.resize(PIXELS, (frames, side, side, 3)), fps)
    return path.read_bytes()


def png_declaring(width: int, height: int) -> bytes:
    """A few bytes that claim to be a large picture."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**5)))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def refused(
    guard: MediaGuard,
    data: bytes,
    code: str,
    *words: str,
    kind: str = "picture",
    status: int = 400,
    param: str | None = "image",
) -> str:
    with pytest.raises(ApiError) as caught:
        asyncio.run(getattr(guard, kind)(data, param="image"))
    error = caught.value
    assert (error.code, error.status, error.param) == (code, status, param), error.message
    assert all(word in error.message for word in words), error.message
    return error.message


# --- what is taken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("JPEG", 60), ("WEBP", 60), ("GIF", 60)])
def test_pictures_arrive_as_they_were_sent(guard: MediaGuard, kind: str, tolerance: int) -> None:
    pixels = asyncio.run(guard.picture(encoded(kind)))
    assert (pixels.dtype, pixels.shape) == (np.uint8, PIXELS.shape)
    assert np.abs(pixels.astype(int) - PIXELS).mean() <= tolerance
    pixels[0, 0] = 0  # a caller may write to what is its own


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_films_arrive_as_they_were_sent(guard: MediaGuard, tmp_path: Path, suffix: str) -> None:
    clip = asyncio.run(guard.film(film(tmp_path / f"a{suffix}", frames=10, fps=12.5)))
    assert isinstance(clip, Clip)
    assert clip.frames.shape == (10, 32, 32, 3)
    assert clip.fps == pytest.approx(12.5)


def test_webm_is_a_film(guard: MediaGuard) -> None:
    clip = asyncio.run(guard.film(container("webm", "libvpx-vp9")))
    assert clip.frames.shape == (6, 32, 32, 3)


def container(kind: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as output:
        stream = output.add_stream(codec, rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in np.resize(PIXELS, (6, 32, 32, 3)):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def test_many_at_once_each_get_their_own(guard: MediaGuard) -> None:
    pictures = [np.full((8, 9 + index, 3), index, np.uint8) for index in range(12)]
    broken = encoded("PNG")[:200]

    async def all_of_them() -> list:
        files = [data for picture in pictures for data in (encoded("PNG", picture), broken)]
        return await asyncio.gather(*map(guard.picture, files), return_exceptions=True)

    results = asyncio.run(all_of_them())
    assert all(np.array_equal(result, picture) for result, picture in zip(results[::2], pictures, strict=True))
    assert all(isinstance(result, ApiError) for result in results[1::2])


# --- what is not ------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_header(guard: MediaGuard) -> None:
    refused(guard, png_declaring(20_000, 20_000), "media_size", "20000 x 20000", "8192")
    refused(guard, png_declaring(8000, 8000), "media_size", "8000 x 8000", str(2**24))


def test_a_picture_of_one_pixel_is_refused(guard: MediaGuard) -> None:
    refused(guard, encoded("PNG", PIXELS[:1, :1]), "media_size", "1 x 1")
    refused(guard, encoded("GIF", PIXELS[:7]), "media_size", kind="film")
    assert asyncio.run(guard.picture(encoded("PNG", PIXELS[:8, :8]))).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["picture", "film"])
@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
        encoded("TIFF"),
        encoded("BMP"),
        encoded("PPM"),
        encoded("JPEG2000"),
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"#EXTM3U\nhttp://127.0.0.1/secret",
        b"v",
    ],
)
def test_only_listed_formats_are_taken(guard: MediaGuard, kind: str, data: bytes) -> None:
    refused(guard, data, "unsupported_format", "PNG" if kind == "picture" else "MP4", kind=kind)


def test_a_picture_is_no_film_and_a_film_no_picture(guard: MediaGuard, tmp_path: Path) -> None:
    refused(guard, encoded("PNG"), "unsupported_format", kind="film")
    refused(guard, film(tmp_path / "a.mp4"), "unsupported_format")


@pytest.mark.parametrize("kind", ["picture", "film"])
def test_nothing_and_too_much(kind: str) -> None:
    guard = MediaGuard(MediaLimits(max_bytes=100))
    refused(guard, b"", "empty_media", kind=kind)
    refused(guard, bytes(101), "media_too_large", "100", kind=kind, status=413)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_truncated_picture_is_refused_in_our_words(guard: MediaGuard, kind: str) -> None:
    data = encoded(kind)
    messages = {refused(guard, data[: len(data) * part // 8], "unreadable_media") for part in (1, 4)}
    assert messages == {"the picture cannot be decoded: it is damaged, cut off or too demanding"}


def test_a_magic_number_with_junk_is_refused_in_our_words(guard: MediaGuard) -> None:
    for magic in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF0000WEBP"):
        message = refused(guard, magic + b"0x7f3a at <_io.BytesIO object>" * 9, "unreadable_media")
        assert "0x" not in message
        assert "/" not in message


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_truncated_film_is_refused(guard: MediaGuard, tmp_path: Path, suffix: str) -> None:
    data = film(tmp_path / f"a{suffix}")
    for part in (1, 4, 7):
        refused(guard, data[: len(data) * part // 8], "unreadable_media", "the film", kind="film")


def test_a_film_may_not_hide_other_codecs(guard: MediaGuard) -> None:
    refused(guard, container("mp4", "mjpeg"), "unsupported_codec", "H.264", kind="film")
    refused(guard, container("mp4", "jpeg2000"), "unsupported_codec", kind="film")


def test_a_film_may_not_hide_a_codec_in_another_stream(guard: MediaGuard) -> None:
    for codec, taken in (("aac", True), ("alac", False)):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as output:
            stream, sound = output.add_stream("libx264", rate=8), output.add_stream(codec, rate=8000)
            stream.width, stream.height, stream.pix_fmt = 40, 24, "yuv420p"
            output.mux(stream.encode(av.VideoFrame.from_ndarray(PIXELS, format="rgb24")))
            silence = np.zeros((1, 1024), np.float32 if codec == "aac" else np.int16)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp" if codec == "aac" else "s16p", layout="mono")
            frame.sample_rate = 8000
            output.mux(sound.encode(frame))
            output.mux([*stream.encode(), *sound.encode()])
        if taken:
            assert asyncio.run(guard.film(buffer.getvalue())).frames.shape == (1, 24, 40, 3)
        else:
            refused(guard, buffer.getvalue(), "unsupported_codec", kind="film")


def test_sound_alone_is_no_film(guard: MediaGuard) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    refused(guard, buffer.getvalue(), "unreadable_media", "sound", kind="film")


# --- films without end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_are_capped(guard: MediaGuard, tmp_path: Path, suffix: str) -> None:
    data = film(tmp_path / f"a{suffix}", frames=12)
    assert len(asyncio.run(limited(guard, max_frames=12).film(data)).frames) == 12
    refused(limited(guard, max_frames=11), data, "film_too_long", "11 frames", kind="film")
    assert len(asyncio.run(limited(guard, max_film_pixels=12 * 32 * 32).film(data)).frames) == 12
    few = limited(guard, max_film_pixels=12 * 32 * 32 - 1)
    refused(few, data, "film_too_long", "32 x 32", str(12 * 32 * 32 - 1), kind="film")


def test_frames_are_capped_where_the_header_tells_no_number(guard: MediaGuard) -> None:
    data = container("webm", "libvpx-vp9")
    refused(limited(guard, max_frames=5), data, "film_too_long", "5 frames", kind="film")


def test_time_is_capped(guard: MediaGuard, tmp_path: Path) -> None:
    data = film(tmp_path / "a.mp4", frames=8, fps=2)
    assert asyncio.run(limited(guard, max_seconds=4).film(data)).fps == 2
    refused(limited(guard, max_seconds=3.9), data, "film_too_long", "3.9 seconds", kind="film")


def test_a_still_that_stands_for_hours_does_not_become_frames(guard: MediaGuard) -> None:
    still, other = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    buffer = io.BytesIO()
    still.save(buffer, "GIF", save_all=True, append_images=[other, still], duration=[10, 655_350, 655_350])
    refused(guard, buffer.getvalue(), "film_too_long", "512 frames", kind="film")


# --- decoders gone wrong ----------------------------------------------------------------------------------------------


def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, **limits: float) -> MediaGuard:
    """Return a guard whose children run ``body`` on GIFs, and what they should on all other pictures."""
    script = tmp_path / "hostile.py"
    script.write_text(
        f"""
import os, time
import numpy as np
import rhea.serving.decode as decode
honest, decode.PATIENCE = decode._DECODERS["picture"], 60
def picture(path, kind, limits):
    if kind != "GIF":
        return honest(path, kind, limits)
    {body}
    return {{}}, np.zeros((8, 8, 3), np.uint8)
decode._DECODERS["picture"] = picture
decode.main()
"""
    )
    monkeypatch.setattr(untrusted, "_COMMAND", [str(script)])
    return MediaGuard(replace(MediaLimits(), **limits))


@pytest.mark.parametrize(
    "body",
    [
        "os.abort()",
        "os._exit(0)",
        "raise ValueError('heap at 0x7f00')",
        "while True: pass",
        "hog = [bytes(2**24) for _ in range(100)]",
        "many = [open('/dev/null') for _ in range(100)]",
        "return {}, np.zeros((9000, 9000, 3), np.uint8)",
        "return {}, np.zeros((8, 8, 4), np.uint8)",
        "return {}, np.zeros((2, 8, 8, 3), np.uint8)",
        "return {'x': 'y' * 2**17}, np.zeros((8, 8, 3), np.uint8)",
    ],
)
def test_a_decoder_gone_wrong_costs_one_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    monkeypatch.setattr(untrusted, "PATIENCE", 60)
    guard = hostile(monkeypatch, tmp_path, body, decoding_seconds=1, decoding_memory=2**28)

    async def both() -> list:
        return await asyncio.gather(*map(guard.picture, (encoded("GIF"), encoded("PNG"))), return_exceptions=True)

    error, pixels = asyncio.run(both())
    assert isinstance(error, ApiError)
    assert (error.code, "0x" in error.message) == ("unreadable_media", False)
    assert np.array_equal(pixels, PIXELS)


def test_a_decoder_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guard = hostile(monkeypatch, tmp_path, "time.sleep(1000)", decoding_seconds=0.1)
    refused(guard, encoded("GIF"), "media_timeout", "smaller")
    assert no_children(guard)


def test_a_request_that_is_given_up_leaves_no_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guard = hostile(monkeypatch, tmp_path, f"open({str(tmp_path / 'busy')!r}, 'w'); time.sleep(1000)")

    async def given_up() -> None:
        task = asyncio.create_task(guard.picture(encoded("GIF")))
        while not (tmp_path / "busy").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(given_up())
    assert no_children(guard)
    asyncio.run(guard.stop())


def no_children(guard: MediaGuard) -> bool:
    process = guard._nursery._process
    assert process is not None
    for child in psutil.Process(process.pid).children():
        child.wait(timeout=60)
    return True


def test_a_child_writes_no_file_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RHEA_API_KEY", "secret")
    told = "return {}, np.zeros((8, 8 + ('secret' in os.environ.values()), 3), np.uint8)"
    assert asyncio.run(hostile(monkeypatch, tmp_path, told).picture(encoded("GIF"))).shape == (8, 8, 3)
    written = f"os.write(os.open({str(tmp_path / 'stolen')!r}, os.O_CREAT | os.O_WRONLY), b'x')"
    refused(hostile(monkeypatch, tmp_path, written), encoded("GIF"), "unreadable_media")
    assert (tmp_path / "stolen").stat().st_size == 0


def test_the_forking_process_is_born_again() -> None:
    guard = MediaGuard()
    asyncio.run(guard.start())
    process = guard._nursery._process
    assert process is not None
    process.kill()
    process.wait()
    assert np.array_equal(asyncio.run(guard.picture(encoded("PNG"))), PIXELS)
    asyncio.run(guard.stop())
    assert guard._nursery._process is None


def test_a_forking_process_that_cannot_start_is_our_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "_COMMAND", ["-c", "import sys; sys.stdin.close()"])
    refused(MediaGuard(), encoded("PNG"), "decoder_unavailable", "try again", status=503, param=None)


# --- addresses --------------------------------------------------------------------------------------------------------


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def url_refused(guard: MediaGuard, url: str, code: str, status: int = 400) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(guard.load(url, param="image_url"))
    assert (caught.value.code, caught.value.status, caught.value.param) == (code, status, "image_url")


def test_a_data_url_holds_what_was_sent(guard: MediaGuard, tmp_path: Path) -> None:
    picture, movie = encoded("PNG"), film(tmp_path / "a.mp4")
    assert asyncio.run(guard.load(data_url("image/png", picture))) == picture
    assert asyncio.run(guard.load(data_url("video/mp4", movie))) == movie
    assert asyncio.run(guard.load(data_url("IMAGE/JPG", encoded("JPEG")))) == encoded("JPEG")


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,",
        "data:image/png,hello",
        "data:image/png;base64",
        "data:;base64,aGVsbG8=",
        "data:image/png;base64,aGVsbG8",
        "data:image/png;base64,aGVsbG8=aGVsbG8=",
        "data:image/png;base64,aGVs bG8=",
        "data:image/png;base64,aGVs\nbG8=",
        "data:image/png;base64,_-_-",
        "data:image/png;base64,%61",
        "data:image/png;base64,ä",
        "data:image/png;charset=utf-8;base64,aGVsbG8=",
        "data:image/svg+xml;base64,aGVsbG8=",
        "data:text/html;base64,aGVsbG8=",
        "data:image/png;base64;" + "x" * 100 + ",aGVsbG8=",
    ],
)
def test_data_urls_are_parsed_strictly(guard: MediaGuard, url: str) -> None:
    url_refused(guard, url, "invalid_data_url")


def test_a_data_url_may_not_lie(guard: MediaGuard, tmp_path: Path) -> None:
    url_refused(guard, data_url("image/png", encoded("JPEG")), "media_type_mismatch")
    url_refused(guard, data_url("image/jpeg", film(tmp_path / "a.gif")), "media_type_mismatch")


def test_a_data_url_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG")
    exact = MediaGuard(MediaLimits(max_bytes=len(data)))
    assert asyncio.run(exact.load(data_url("image/png", data))) == data
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    url_refused(MediaGuard(MediaLimits(max_bytes=len(data) - 3)), data_url("image/png", data), "media_too_large", 413)


@pytest.mark.parametrize(
    "url", ["http://a.org/a.png", "file:///etc/passwd", "ftp://a.org/a", "/etc/passwd", "", "gopher:", "\0"]
)
def test_other_schemes_are_refused(guard: MediaGuard, url: str) -> None:
    url_refused(guard, url, "unsupported_url")


def test_nothing_is_fetched_unless_a_fetcher_is_given(guard: MediaGuard) -> None:
    url_refused(guard, "https://example.org/a.png", "remote_media_disabled")

    class Fake:
        async def get(self, url: str) -> bytes:
            if "bad" in url:
                raise ApiError(400, "no", code="fetch_failed")
            return url.encode()

    assert asyncio.run(MediaGuard(fetcher=Fake()).load("https://a.org/x")) == b"https://a.org/x"
    url_refused(MediaGuard(fetcher=Fake()), "https://a.org/bad", "fetch_failed")


def test_formats_are_told_by_first_bytes_alone() -> None:
    assert [media_format(encoded(kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF")] == ["PNG", "JPEG", "WEBP", "GIF"]
    assert media_format(container("matroska", "libvpx-vp9")) is None
    assert media_format(container("mov", "mpeg4")) is None
    assert media_format(b"\x89PNG") is None
