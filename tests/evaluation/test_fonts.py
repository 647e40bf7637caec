"""The prompt below a picture is drawn with its own letters, or a sentence says that no font has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ImageFont

from flowward.evaluation import fonts, images

SCRIPTS = {"Russian": "Кошка в красной шапке", "Arabic": "قطة ترتدي قبعة", "Chinese": "一只戴着红色帽子的猫"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_letter_has_a_glyph_or_a_sentence_says_so(script: str) -> None:
    said, font = fonts.shown(SCRIPTS[script], 13)
    assert said in (SCRIPTS[script], fonts.NONE)
    assert fonts.has(font, fonts._visible(said))


def test_pillows_own_font_lacks_what_another_one_may_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A damaged file among the fonts is passed over; without any font, the caption says so."""
    own = ImageFont.load_default(13)
    assert fonts.has(own, frozenset("abc")) and not fonts.has(own, frozenset("Кошка"))
    (tmp_path / "a.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    for cached in (fonts.files, fonts._covering):
        cached.cache_clear()
    try:
        assert fonts.files() == (tmp_path / "a.ttf",)
        assert fonts.shown(SCRIPTS["Russian"], 13)[0] == fonts.NONE
        assert fonts.shown("a circle", 13)[0] == "a circle"
    finally:
        for cached in (fonts.files, fonts._covering):
            cached.cache_clear()


def test_scripts_without_spaces_are_broken_into_lines() -> None:
    font = ImageFont.load_default(images.TEXT)  # every character is as wide as its box
    lines = images._wrapped(SCRIPTS["Chinese"], font, int(6 * font.getlength("一")))
    assert lines == ["一只戴着红色", "帽子的猫"]


def test_a_user_without_a_home_has_the_fonts_of_the_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is not in its list of users."""
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path("~/.fonts").expanduser()
    assert fonts.files.__wrapped__() == fonts.files()
