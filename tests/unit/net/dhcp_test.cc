#include "net/dhcp.h"

#include <catch2/catch.hpp>

#include "net/link_addresses.h"
#include "net/wire.h"

namespace catnap::net {
namespace {

using Message = std::vector<uint8_t>;

constexpr size_t kFixed = 240;  // With the magic.

Message Request(uint8_t type, const Message& more = {}) {
  Message message(kFixed - 4);
  message[0] = 1;
  message[1] = 1;
  message[2] = 6;
  message[4] = 0x42;  // The transaction.
  std::copy(kDefaultGuestMac.begin(), kDefaultGuestMac.end(),
            message.begin() + 28);
  Append32(&message, 0x63825363);
  AppendBytes(&message, Message{53, 1, type});
  AppendBytes(&message, more);
  Append8(&message, 255);
  return message;
}

std::optional<Message> Ask(const Message& message) {
  return AnswerDhcp(message, kDefaultGuestMac, 1500);
}

// The option's value; empty when it is not there.
Message OptionOf(const Message& message, uint8_t option) {
  for (size_t at = kFixed; at + 1 < message.size() && message[at] != 255;
       at += 2 + size_t{message[at + 1]}) {
    if (message[at] != option) continue;
    const auto begin = message.begin() + static_cast<std::ptrdiff_t>(at + 2);
    return {begin, begin + message[at + 1]};
  }
  return {};
}

TEST_CASE("AnswerDhcp offers and leases the link's addresses") {
  const auto offer = Ask(Request(1));
  REQUIRE(offer.has_value());
  CHECK((*offer)[0] == 2);
  CHECK((*offer)[4] == 0x42);
  CHECK(IpAddress::V4(std::span(*offer).subspan(16, 4)) == kGuestV4);
  CHECK(OptionOf(*offer, 53) == Message{2});
  CHECK(OptionOf(*offer, 1) == Message{255, 255, 255, 248});
  CHECK(OptionOf(*offer, 3) == Message{10, 233, 117, 1});
  CHECK(OptionOf(*offer, 6) == Message{10, 233, 117, 3});
  CHECK(OptionOf(*offer, 26) == Message{1500 >> 8, 1500 & 0xff});

  const auto ack =
      Ask(Request(3, {50, 4, 10, 233, 117, 2, 54, 4, 10, 233, 117, 1}));
  REQUIRE(ack.has_value());
  CHECK(OptionOf(*ack, 53) == Message{5});
  CHECK(OptionOf(*ack, 51).size() == 4);
}

TEST_CASE("AnswerDhcp refuses another address, and leaves other servers be") {
  const auto nak = Ask(Request(3, {50, 4, 10, 0, 0, 9}));
  REQUIRE(nak.has_value());
  CHECK(OptionOf(*nak, 53) == Message{6});
  CHECK(OptionOf(*nak, 3).empty());
  CHECK_FALSE(Ask(Request(3, {54, 4, 10, 0, 0, 9})).has_value());
  CHECK_FALSE(Ask(Request(4)).has_value());  // Decline.
  CHECK_FALSE(Ask(Request(7)).has_value());  // Release.
}

TEST_CASE("AnswerDhcp takes no malformed message") {
  const Message good = Request(1);
  for (size_t size = 0; size < kFixed; ++size) {
    CHECK_FALSE(Ask(Message(good.begin(),
                            good.begin() + static_cast<std::ptrdiff_t>(size)))
                    .has_value());
  }
  for (const size_t at : {0U, 1U, 2U, 28U, 236U}) {
    Message bad = good;
    bad[at] ^= 0x10;
    CAPTURE(at);
    CHECK_FALSE(Ask(bad).has_value());
  }
  // An option beyond the end, and one without a length.
  CHECK_FALSE(Ask(Request(1, {50, 200})).has_value());
  Message bare = good;
  bare.back() = 50;
  CHECK_FALSE(Ask(bare).has_value());
}

}  // namespace
}  // namespace catnap::net
