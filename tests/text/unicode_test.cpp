#include "dflash/text/unicode.hpp"

#include <doctest/doctest.h>

#include "dflash/text/newer_characters.hpp"
#include "dflash/text/utf8.hpp"

namespace unicode_test {

using namespace dflash;

TEST_CASE("UTF-8 goes to code points and back") {
  const std::string text = "a\u00e9\u20ac\U0001F600";
  CHECK(to_utf32(text) == U"a\u00e9\u20ac\U0001F600");
  CHECK(to_utf8(to_utf32(text)) == text);
  CHECK(is_utf8(text));
  CHECK(!is_ascii(text));
  CHECK(is_ascii("plain"));
  CHECK(code_point_before(text, text.size()) == 6);
  CHECK(code_point_before(text, 6) == 3);
}

TEST_CASE("what is no UTF-8 becomes one replacement character for each maximal part") {
  const std::string r = "\uFFFD";
  CHECK(lossy_utf8("a\xff"
                   "b") == "a" + r + "b");
  CHECK(lossy_utf8("\xE2\x82") == r);  // a character that is cut off
  CHECK(lossy_utf8("\xE2\x82z") == r + "z");
  CHECK(lossy_utf8("\xF0\x9F\x98") == r);
  CHECK(lossy_utf8("\xC0\xAF") == r + r);  // overlong
  CHECK(lossy_utf8("\xE0\x80\xAF") == r + r + r);
  CHECK(lossy_utf8("\xED\xA0\x80") == r + r + r);          // half of a surrogate pair
  CHECK(lossy_utf8("\xF4\x90\x80\x80") == r + r + r + r);  // above U+10FFFF
  CHECK(lossy_utf8("\x80\x80") == r + r);
  for (const char* bad : {"\xff", "\xE2\x82", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80"})
    CHECK(!is_utf8(bad));
}

TEST_CASE("normalisation composes and decomposes") {
  CHECK(normalized("cafe\u0301 \u212b", NormalForm::nfc) == "caf\u00e9 \u00c5");
  CHECK(normalized("caf\u00e9", NormalForm::nfd) == "cafe\u0301");
  CHECK(normalized("\ufb01", NormalForm::nfc) == "\ufb01");
  CHECK(normalized("\ufb01\uff11", NormalForm::nfkc) == "fi1");
  CHECK(normalized("o\u0302\u0323", NormalForm::nfc) == "\u1ed9");
  CHECK(normalized(std::string("a\0\u00e9", 4), NormalForm::nfd) == std::string("a\0e\u0301", 5));
}

TEST_CASE("characters have classes") {
  CHECK(is_white_space(U'\u3000'));
  CHECK(!is_white_space(U'\u200b'));
  CHECK(!is_white_space(U'\u180e'));
  CHECK(is_word_character(U'\u0301'));
  CHECK(is_word_character(U'_'));
  CHECK(!is_word_character(U'-'));
  CHECK(is_word_character(U'\U000105C0'));  // newer than the tables of utf8proc 2.8
  CHECK(is_printable(U'\u00e9'));
  CHECK(!is_printable(U'\n'));
  CHECK(upper_case(U'\u00e9') == U'\u00c9');
}

TEST_CASE("newer characters are replaced by older ones of the same size") {
  std::string storage;
  const std::string old_text = "caf\u00e9 \u4f60 \U0001F600";
  CHECK(with_older_characters(old_text, storage).data() == old_text.data());
  const std::string text = "x\u1c89y\U0002ebf0z";
  const std::string_view older = with_older_characters(text, storage);
  CHECK(older == "x\u1e00y\U00020000z");
  CHECK(older.size() == text.size());
}

}  // namespace unicode_test
