#include "net/dhcp.h"

#include <algorithm>
#include <vector>

#include "fuzz/fuzz_target.h"
#include "net/link_addresses.h"
#include "net/wire.h"

// A guest's DHCP message. What must be there for us to look at the rest is put
// there when the first byte is odd. An answer fits a packet, gives no address
// but the guest's, and is for the guest.

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace catnap::net;  // NOLINT(google-build-using-namespace)
  if (size == 0) return 0;
  std::vector<uint8_t> message(data + 1, data + size);
  if ((data[0] & 1) != 0) {
    if (message.size() < 240) message.resize(240);
    message[0] = 1;
    message[1] = 1;
    message[2] = 6;
    std::copy(kDefaultGuestMac.begin(), kDefaultGuestMac.end(),
              message.begin() + 28);
    Store16(message, 236, 0x6382);
    Store16(message, 238, 0x5363);
  }
  const auto answer = AnswerDhcp(message, kDefaultGuestMac, 1500);
  if (!answer.has_value()) return 0;
  FUZZ_CHECK(answer->size() >= 300 && answer->size() <= 576);
  FUZZ_CHECK((*answer)[0] == 2);
  const IpAddress given = IpAddress::V4(std::span(*answer).subspan(16, 4));
  FUZZ_CHECK(given == kGuestV4 || given.IsUnspecified());
  return 0;
}
