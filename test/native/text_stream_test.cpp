#include "session/text_stream.h"

#include <gtest/gtest.h>

#include "model/utf8.h"

namespace longsight::test {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

TEST(TextStream, HoldsCharactersUntilTheyAreWhole) {
  TextStream stream({});
  EXPECT_EQ(stream.push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80 b"), "\xF0\x9F\x98\x80 b");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextStream, ReplacesWhatIsNoUtf8) {
  TextStream stream({});
  EXPECT_EQ(stream.push("a\xFF"
                        "b"),
            std::string("a") + kReplacement + "b");
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.push("x"), std::string(kReplacement) + "x");
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.finish(), kReplacement);
}

TEST(TextStream, NeverShowsAPartOfAStopString) {
  TextStream stream({"</end>", "STOP"});
  EXPECT_EQ(stream.push("text </"), "text ");
  EXPECT_EQ(stream.push("en"), "");
  EXPECT_EQ(stream.push("try ST"), "</entry ");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.push("OP more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.push("nothing"), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextStream, TheEarliestStopStringCounts) {
  TextStream stream({"bc", "ab"});
  EXPECT_EQ(stream.push("xabc"), "x");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStream, ReleasesWhatWasNoStopString) {
  TextStream stream({"###"});
  EXPECT_EQ(stream.push("a##"), "a");
  EXPECT_EQ(stream.finish(), "##");
}

TEST(TextStream, StopStringsOfSeveralBytesACharacter) {
  TextStream stream({"\xE2\x82\xAC!"});
  EXPECT_EQ(stream.push("5\xE2"), "5");
  EXPECT_EQ(stream.push("\x82\xAC"), "");
  EXPECT_EQ(stream.push("?"), "\xE2\x82\xAC?");
}

TEST(Utf8, KnowsValidFromBroken) {
  EXPECT_EQ(validCharacter("\xC2\x80", 0), 2u);
  EXPECT_EQ(validCharacter("\xC1\x80", 0), 0u);
  EXPECT_EQ(validCharacter("\xE0\x9F\x80", 0), 0u);
  EXPECT_EQ(validCharacter("\xED\xA0\x80", 0), 0u);
  EXPECT_EQ(validCharacter("\xF4\x8F\xBF\xBF", 0), 4u);
  EXPECT_EQ(validCharacter("\xF4\x90\x80\x80", 0), 0u);
  EXPECT_TRUE(isCutCharacter("\xF0\x9F", 0));
  EXPECT_FALSE(isCutCharacter("\xF0\x28", 0));
}

}  // namespace
}  // namespace longsight::test
