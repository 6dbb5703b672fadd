#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/log_text.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

// Console bytes of a guest. What comes out must fit, be one line, and be
// clean: cleaning it again changes nothing.

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  std::vector<char> out(input.Between<uint8_t>(3, 255));
  const auto rest = input.Rest();
  const std::string_view text(reinterpret_cast<const char*>(rest.data()),
                              rest.size());
  const size_t length = catnap::base::CleanLogText(text, out);
  FUZZ_CHECK(length <= out.size());
  const std::string clean(out.data(), length);
  FUZZ_CHECK(std::none_of(clean.begin(), clean.end(), [](char c) {
    return (c >= 0 && c < ' ') || c == '\x7f';
  }));
  std::string again(out.size(), '\0');
  again.resize(catnap::base::CleanLogText(clean, again));
  FUZZ_CHECK(again == clean);
  return 0;
}
