#include "net/dhcp.h"

#include <algorithm>
#include <array>

#include "net/link_addresses.h"
#include "net/wire.h"

namespace catnap::net {
namespace {

constexpr size_t kFixedBytes = 236;
constexpr size_t kClientAddressAt = 12;
constexpr size_t kHardwareAddressAt = 28;
constexpr uint32_t kMagic = 0x63825363;

enum class Option : uint8_t {
  kPad = 0,
  kSubnetMask = 1,
  kRouter = 3,
  kDns = 6,
  kMtu = 26,
  kRequestedAddress = 50,
  kLeaseTime = 51,
  kMessageType = 53,
  kServer = 54,
  kEnd = 255,
};

enum class MessageType : uint8_t {
  kDiscover = 1,
  kOffer = 2,
  kRequest = 3,
  kAck = 5,
  kNak = 6,
  kInform = 8,
};

// The guest's address never changes; a day keeps clients quiet.
constexpr uint32_t kLeaseSeconds = 86400;

struct Request {
  MessageType type{};
  std::optional<IpAddress> requested;
  std::optional<IpAddress> server;
};

// The options that matter here. nullopt: they are malformed.
std::optional<Request> ReadOptions(std::span<const uint8_t> options) {
  Request request;
  while (!options.empty()) {
    const auto option = static_cast<Option>(options[0]);
    if (option == Option::kEnd) break;
    if (option == Option::kPad) {
      options = options.subspan(1);
      continue;
    }
    if (options.size() < 2 || options[1] > options.size() - 2) {
      return std::nullopt;
    }
    const auto value = options.subspan(2, options[1]);
    options = options.subspan(2 + value.size());
    if (option == Option::kMessageType && value.size() == 1) {
      request.type = static_cast<MessageType>(value[0]);
    } else if (option == Option::kRequestedAddress && value.size() == 4) {
      request.requested = IpAddress::V4(value);
    } else if (option == Option::kServer && value.size() == 4) {
      request.server = IpAddress::V4(value);
    }
  }
  return request;
}

void PutOption(std::vector<uint8_t>* to, Option option,
               std::span<const uint8_t> value) {
  Append8(to, static_cast<uint8_t>(option));
  Append8(to, static_cast<uint8_t>(value.size()));
  AppendBytes(to, value);
}

void PutOption32(std::vector<uint8_t>* to, Option option, uint32_t value) {
  std::vector<uint8_t> bytes;
  Append32(&bytes, value);
  PutOption(to, option, bytes);
}

}  // namespace

std::optional<std::vector<uint8_t>> AnswerDhcp(std::span<const uint8_t> message,
                                               const MacAddress& mac,
                                               uint16_t mtu) {
  // BOOTREQUEST from an Ethernet card, the guest's own.
  if (message.size() < kFixedBytes + 4 || message[0] != 1 || message[1] != 1 ||
      message[2] != 6 || Load32(message, kFixedBytes) != kMagic ||
      !std::equal(mac.begin(), mac.end(),
                  message.begin() + kHardwareAddressAt)) {
    return std::nullopt;
  }
  const auto request = ReadOptions(message.subspan(kFixedBytes + 4));
  if (!request.has_value()) return std::nullopt;
  if (request->server.has_value() && *request->server != kGatewayV4) {
    return std::nullopt;  // It took another server's offer.
  }
  const IpAddress client = IpAddress::V4(message.subspan(kClientAddressAt, 4));
  MessageType answer{};
  switch (request->type) {
    case MessageType::kDiscover:
      answer = MessageType::kOffer;
      break;
    case MessageType::kRequest:
      answer = request->requested.value_or(client) == kGuestV4
                   ? MessageType::kAck
                   : MessageType::kNak;
      break;
    case MessageType::kInform:
      answer = MessageType::kAck;
      break;
    default:
      return std::nullopt;
  }
  const bool leases =
      answer != MessageType::kNak && request->type != MessageType::kInform;

  std::vector<uint8_t> reply(message.begin(), message.begin() + kFixedBytes);
  // What stays is the transaction id, the flags and the hardware address.
  std::fill(reply.begin() + 44, reply.end(), uint8_t{0});  // Names.
  std::fill(reply.begin() + 12, reply.begin() + 28, uint8_t{0});
  std::fill(reply.begin() + 34, reply.begin() + 44, uint8_t{0});
  reply[0] = 2;
  reply[3] = 0;
  if (!leases && answer == MessageType::kAck) {
    std::copy_n(client.bytes.begin(), 4, reply.begin() + kClientAddressAt);
  }
  if (leases) std::copy_n(kGuestV4.bytes.begin(), 4, reply.begin() + 16);
  Append32(&reply, kMagic);
  PutOption(&reply, Option::kMessageType,
            std::array{static_cast<uint8_t>(answer)});
  PutOption(&reply, Option::kServer, kGatewayV4.span());
  if (leases) PutOption32(&reply, Option::kLeaseTime, kLeaseSeconds);
  if (answer != MessageType::kNak) {
    PutOption32(&reply, Option::kSubnetMask,
                ~uint32_t{0} << (32 - kLinkBitsV4));
    PutOption(&reply, Option::kRouter, kGatewayV4.span());
    PutOption(&reply, Option::kDns, kDnsV4.span());
    PutOption(
        &reply, Option::kMtu,
        std::array{static_cast<uint8_t>(mtu >> 8), static_cast<uint8_t>(mtu)});
  }
  Append8(&reply, static_cast<uint8_t>(Option::kEnd));
  // The least that old clients take.
  if (reply.size() < 300) reply.resize(300);
  return reply;
}

}  // namespace catnap::net
