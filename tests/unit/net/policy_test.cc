#include "net/policy.h"

#include <catch2/catch.hpp>
#include <string>

namespace catnap::net {
namespace {

IpAddress Ip(const std::string& text) {
  const auto address = ParseIp(text);
  REQUIRE(address.has_value());
  return *address;
}

Peer Tcp(const std::string& address, uint16_t port) {
  return {.address = Ip(address), .transport = Transport::kTcp, .port = port};
}

std::shared_ptr<const Policy> Compile(const PolicySpec& spec) {
  auto policy = Policy::Compile(spec);
  INFO(policy.status().ToString());
  REQUIRE(policy.ok());
  return *std::move(policy);
}

std::shared_ptr<const Policy> Allow(std::vector<RuleSpec> rules) {
  return Compile({.mode = PolicyMode::kAllow, .rules = std::move(rules)});
}

TEST_CASE("Policy refuses rules that mean nothing, and says what would") {
  const auto [to, text] = GENERATE(table<std::string, std::string>({
      {"", "is empty"},
      {"10.0.0.0/33", "from 0 to 32"},
      {"10.0.0.0/", "from 0 to 32"},
      {"10.0.0.0/-1", "from 0 to 32"},
      {"10.0.0.0/8x", "from 0 to 32"},
      {"10.0.0.1/8", "bits set behind the first 8"},
      {"10.0.0.256", "neither an address nor a range"},
      {"2001:db8::/129", "from 0 to 128"},
      {"2001:db8::1/64", "bits set behind the first 64"},
      {"1.2.3", "neither an address nor a range"},
      {"127.0.0.1", "no policy opens"},
      {"::1", "no policy opens"},
      {"*", "is no name"},
      {"*.", "is no name"},
      {"a.*.org", "is no name"},
      {"**.example.org", "is no name"},
      {"example..org", "is no name"},
      {"exämple.org", "xn--"},
      {"https://example.org", "neither an address nor a range"},
      {"example.org:443", "neither an address nor a range"},
      {std::string(64, 'a') + ".org", "is no name"},
  }));
  CAPTURE(to);
  const auto policy =
      Policy::Compile({.mode = PolicyMode::kAllow, .rules = {{.to = to}}});
  CHECK(policy.status().code() == absl::StatusCode::kInvalidArgument);
  CHECK_THAT(std::string(policy.status().message()),
             Catch::Contains("network rule 0") && Catch::Contains(text));
}

TEST_CASE("Policy refuses ports that are none, and too much of everything") {
  const auto ports = [](const std::vector<PortSpan>& spans) {
    return Policy::Compile({.mode = PolicyMode::kAllow,
                            .rules = {{.to = "a.org", .ports = spans}}})
        .status()
        .code();
  };
  CHECK(ports({{0, 10}}) == absl::StatusCode::kInvalidArgument);
  CHECK(ports({{10, 9}}) == absl::StatusCode::kInvalidArgument);
  CHECK(ports(std::vector<PortSpan>(65, {1, 2})) ==
        absl::StatusCode::kInvalidArgument);
  CHECK(ports({{1, 65535}}) == absl::StatusCode::kOk);
  CHECK(Policy::Compile({.mode = PolicyMode::kAllow,
                         .rules = std::vector<RuleSpec>(1025, {.to = "a.b"})})
            .status()
            .code() == absl::StatusCode::kInvalidArgument);
  CHECK(Policy::Compile(
            {.mode = PolicyMode::kPublicInternet, .rules = {{.to = "a.b"}}})
            .status()
            .code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("PublicInternet is the public Internet") {
  const auto policy = Compile({.mode = PolicyMode::kPublicInternet});
  for (const char* address :
       {"1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "192.167.1.1",
        "2606:4700:4700::1111", "2a00:1450::1"}) {
    CAPTURE(address);
    CHECK(policy->AllowsAddress(Tcp(address, 443)));
  }
  for (const char* address : {"0.0.0.0",
                              "10.1.2.3",
                              "100.64.0.1",
                              "127.0.0.1",
                              "127.255.0.1",
                              "168.63.129.16",
                              "169.254.169.254",
                              "169.254.1.1",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.0.0.192",
                              "192.0.2.1",
                              "192.168.0.1",
                              "198.18.0.1",
                              "224.0.0.1",
                              "239.1.1.1",
                              "240.0.0.1",
                              "255.255.255.255",
                              "::",
                              "::1",
                              "::ffff:1.1.1.1",
                              "::ffff:127.0.0.1",
                              "::1.1.1.1",
                              "64:ff9b::7f00:1",
                              "64:ff9b::101:101",
                              "2001::1",
                              "2002:7f00:1::",
                              "2001:db8::1",
                              "fc00::1",
                              "fd00:ec2::254",
                              "fe80::1",
                              "fec0::1",
                              "ff02::1",
                              "4000::1"}) {
    CAPTURE(address);
    CHECK_FALSE(policy->AllowsAddress(Tcp(address, 443)));
  }
}

TEST_CASE("Unrestricted keeps off the host's loopback only") {
  const auto policy = Compile({.mode = PolicyMode::kUnrestricted});
  for (const char* address : {"10.1.2.3", "169.254.169.254", "192.168.0.1",
                              "fd00:ec2::254", "1.1.1.1"}) {
    CAPTURE(address);
    CHECK(policy->AllowsAddress(Tcp(address, 80)));
  }
  for (const char* address :
       {"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1",
        "::127.0.0.1", "::ffff:0:127.0.0.1", "224.0.0.1", "ff02::1"}) {
    CAPTURE(address);
    CHECK_FALSE(policy->AllowsAddress(Tcp(address, 80)));
  }
  CHECK(policy->AllowsName("anything"));
}

TEST_CASE("A range opens special addresses only if it names them") {
  const auto [range, address, opens] =
      GENERATE(table<std::string, std::string, bool>({
          {"0.0.0.0/0", "1.1.1.1", true},
          {"0.0.0.0/0", "10.0.0.1", false},
          {"0.0.0.0/0", "169.254.169.254", false},
          {"0.0.0.0/0", "127.0.0.1", false},
          {"8.0.0.0/5", "10.0.0.1", false},
          {"10.0.0.0/8", "10.0.0.1", true},
          {"10.0.0.0/8", "11.0.0.1", false},
          {"10.2.3.0/28", "10.2.3.15", true},
          {"10.2.3.0/28", "10.2.3.16", false},
          {"169.254.0.0/16", "169.254.1.1", true},
          {"169.254.0.0/16", "169.254.169.254", false},
          {"169.254.169.254", "169.254.169.254", true},
          {"100.64.0.0/10", "100.100.100.200", false},
          {"::/0", "2606::1", true},
          {"::/0", "fd00::1", false},
          {"::/0", "4000::1", false},
          {"::/0", "::1", false},
          {"fd00::/8", "fd00::1", true},
          {"fd00::/8", "fd00:ec2::254", false},
          {"fd00:ec2::254", "fd00:ec2::254", true},
          {"0.0.0.0/0", "2606::1", false},
      }));
  CAPTURE(range, address);
  CHECK(Allow({{.to = range}})->AllowsAddress(Tcp(address, 1)) == opens);
}

TEST_CASE("Rules hold for their ports and protocols") {
  const auto policy =
      Allow({{.to = "1.0.0.0/8", .ports = {{80, 80}, {8000, 8999}}},
             {.to = "2.0.0.0/8", .protocol = RuleProtocol::kUdp},
             {.to = "3.0.0.0/8", .protocol = RuleProtocol::kAny},
             {.to = "4.0.0.0/8",
              .ports = {{53, 53}},
              .protocol = RuleProtocol::kAny}});
  const auto [address, transport, port, opens] =
      GENERATE(table<std::string, Transport, uint16_t, bool>({
          {"1.1.1.1", Transport::kTcp, 80, true},
          {"1.1.1.1", Transport::kTcp, 81, false},
          {"1.1.1.1", Transport::kTcp, 7999, false},
          {"1.1.1.1", Transport::kTcp, 8000, true},
          {"1.1.1.1", Transport::kTcp, 8999, true},
          {"1.1.1.1", Transport::kTcp, 9000, false},
          {"1.1.1.1", Transport::kUdp, 80, false},
          {"1.1.1.1", Transport::kPing, 0, false},
          {"2.1.1.1", Transport::kUdp, 9, true},
          {"2.1.1.1", Transport::kTcp, 9, false},
          {"3.1.1.1", Transport::kTcp, 9, true},
          {"3.1.1.1", Transport::kUdp, 9, true},
          {"3.1.1.1", Transport::kPing, 0, true},
          {"4.1.1.1", Transport::kUdp, 53, true},
          {"4.1.1.1", Transport::kTcp, 53, true},
          {"4.1.1.1", Transport::kPing, 0, false},
      }));
  CAPTURE(address, port);
  CHECK(policy->AllowsAddress(
            {.address = Ip(address), .transport = transport, .port = port}) ==
        opens);
}

TEST_CASE("Names are compared as names") {
  const auto policy =
      Allow({{.to = "Example.ORG."}, {.to = "*.wild.net", .ports = {{1, 1}}}});
  CHECK(policy->AllowsName("example.org"));
  CHECK_FALSE(policy->AllowsName("www.example.org"));
  CHECK_FALSE(policy->AllowsName("badexample.org"));
  CHECK(policy->AllowsName("a.wild.net"));
  CHECK(policy->AllowsName("a.b.wild.net"));
  CHECK_FALSE(policy->AllowsName("wild.net"));
  CHECK_FALSE(policy->AllowsName("evilwild.net"));
  CHECK_FALSE(policy->AllowsName("wild.net.evil.org"));
  CHECK_FALSE(policy->AllowsName(""));
  CHECK_FALSE(Policy::DenyAll()->AllowsName("example.org"));

  CHECK(policy->AllowsNamed("a.wild.net", Tcp("1.1.1.1", 1)));
  CHECK_FALSE(policy->AllowsNamed("a.wild.net", Tcp("1.1.1.1", 2)));
  CHECK_FALSE(policy->AllowsNamed("a.wild.net", Tcp("10.0.0.1", 1)));
  CHECK_FALSE(policy->AllowsAddress(Tcp("1.1.1.1", 1)));
}

TEST_CASE("CanonicalName takes what hosts are called") {
  CHECK(CanonicalName("A_b-1.Org.") == "a_b-1.org");
  CHECK(CanonicalName("").empty());
  CHECK(CanonicalName(".").empty());
  CHECK(CanonicalName(".org").empty());
  CHECK(CanonicalName("a b").empty());
  CHECK(CanonicalName(std::string("a\0b", 3)).empty());
  CHECK(CanonicalName(std::string(63, 'a')).size() == 63);
  CHECK(CanonicalName(std::string(64, 'a')).empty());
}

}  // namespace
}  // namespace catnap::net
