"""Encodings without a label, told by real sentences."""

from __future__ import annotations

import pytest

from docsum.extractors import charset, text

RUSSIAN = "Уважаемые коллеги! Заседание совета директоров состоится в понедельник, в десять часов утра."
JAPANESE = "本日の会議では、来年度の予算と新しい倉庫の建設計画について話し合いました。次回は来週です。"
CHINESE = "各位同事：董事会会议将于星期一上午十点举行。请各部门准备上一季度的工作报告。"
KOREAN = "동료 여러분, 이사회 회의가 월요일 오전 열 시에 열립니다. 지난 분기의 보고서를 준비해 주십시오."
GERMAN = "Sehr geehrte Frau Müller, die Prüfung der Anlage ergab keine Mängel. Mit freundlichen Grüßen"
FRENCH = "Le président a déclaré que la réunion serait reportée à la semaine prochaine, où qu’elle se tienne."
SPANISH = "El señor Núñez comunicó que la reunión será a las diez de la mañana. ¿Quién traerá las actas?"
SWEDISH = "På mötet beslutade styrelsen att bygga om förrådet. Räkningen skickas till kontoret före påsk."
CZECH = "Příští schůze výboru se koná v pondělí v deset hodin dopoledne. Žádáme všechny členy o zprávy."
POLISH = "Posiedzenie zarządu odbędzie się w poniedziałek. Prosimy o przygotowanie sprawozdań za kwartał."
HUNGARIAN = "A következő ülés hétfőn délelőtt tíz órakor lesz. Kérjük, készítsék elő a jelentéseket."
TURKISH = "Değerli çalışma arkadaşlarımız, yönetim kurulu toplantısı pazartesi günü saat onda yapılacaktır."
GREEK = "Αγαπητοί συνάδελφοι, η συνεδρίαση του διοικητικού συμβουλίου θα γίνει τη Δευτέρα το πρωί."

SENTENCES = [
    *((RUSSIAN, name) for name in ("cp1251", "koi8_r", "cp866")),
    *((JAPANESE, name) for name in ("shift_jis", "euc_jp")),
    (CHINESE, "gb18030"),
    (KOREAN, "euc_kr"),
    *((GERMAN, name) for name in ("latin_1", "mac_roman", "cp850")),
    *((FRENCH, name) for name in ("cp1252", "mac_roman")),
    *((SPANISH, name) for name in ("latin_1", "mac_roman")),
    (SWEDISH, "latin_1"),
    *((sentence, name) for sentence in (CZECH, POLISH, HUNGARIAN) for name in ("cp1250", "iso8859_2")),
    (TURKISH, "cp1254"),
    (GREEK, "cp1253"),
]


@pytest.mark.parametrize(("sentence", "encoding"), SENTENCES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("times", [1, 50])
def test_a_sentence_reads_the_same_in_any_encoding(sentence: str, encoding: str, times: int) -> None:
    content = "\n".join([sentence] * times).encode(encoding)
    assert text.read(content).text == "\n".join([sentence] * times)


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("Shift_JIS", "cp932"),
        ("x-sjis", "cp932"),
        ("EUC-JP", "euc_jp"),
        ("ISO-2022-JP", "iso2022_jp"),
        ("UTF-7", "utf-8"),
    ],
)
def test_an_xml_declaration_counts(declared: str, encoding: str) -> None:
    feed = f"<?xml version='1.0' encoding='{declared}'?><title>会議</title>"
    assert charset.decode(feed.encode(encoding)) == feed


def test_an_xml_declaration_that_cannot_be_true_does_not() -> None:
    feed = f'<?xml version="1.0" encoding="euc-jp"?><p>{GERMAN}</p>'
    assert charset.decode(feed.encode()) == feed
    assert charset.decode(feed.encode("cp1252")) == feed
    packed = b'<?xml version="1.0" encoding="zlib"?><p>Text</p>'
    assert charset.decode(packed) == packed.decode()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("sentence", [GERMAN, RUSSIAN, JAPANESE, CHINESE + " 10", GREEK])
def test_utf16_needs_no_mark(sentence: str, encoding: str) -> None:
    content = f"1. {sentence}\r\nEnd".encode(encoding)
    assert charset.unmarked_utf16(content) == encoding
    assert text.read(content).text == f"1. {sentence}\nEnd"


@pytest.mark.parametrize(
    "content",
    [b"0.0 0.00 30 3030 " * 50, b"plain words\n", RUSSIAN.encode(), JAPANESE.encode("shift_jis"), b"", b"\0"],
)
def test_other_texts_are_no_utf16(content: bytes) -> None:
    assert charset.unmarked_utf16(content) is None


def test_one_bad_byte_does_not_make_utf8_something_else() -> None:
    content = (RUSSIAN * 20).encode()
    assert charset.decode(content[:99] + b"\xff" + content[99:]).count("понедельник") >= 19


def test_the_bytes_beyond_ascii_may_come_late() -> None:
    content = b"Plain words of the beginning.\n" * 5_000 + FRENCH.encode("cp1252")
    assert charset.decode(content).endswith(FRENCH)
